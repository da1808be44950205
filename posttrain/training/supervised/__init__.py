"""SFT, distillation from stored answers and DPO: TRL's trainers in Ray Train workers."""
