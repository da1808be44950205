"""Post-training and RL alignment of the Qwen-VL family, from one YAML file."""

__version__ = "0.1.0"
