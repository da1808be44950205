"""Checkpoints as models: load, freeze and adapt them, compute log-probs, merge adapters and export."""
