"""Float32 that is float32 on a GPU too."""

import os

import torch


def keep_float32_exact() -> None:
    """Have a GPU multiply float32 numbers as such; by default some kernels round them to TF32's ten bits.

    These are cuDNN's convolutions (the learner's patch embedding; the engine's is a matrix product) and
    Triton's dot products (the engine's attention, since FlashAttention knows no float32). An engine and a
    learner of a float32 model would differ by far more than their own rounding.
    """
    torch.backends.cudnn.allow_tf32 = False
    os.environ["TRITON_F32_DEFAULT"] = "ieee"
