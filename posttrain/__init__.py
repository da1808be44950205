"""Post-train and align models of the Qwen-VL family, from one YAML file.

The commands are in `posttrain.cli`; `README.md` in this folder says which part does what.
"""

__all__ = ["__version__"]

#: The version of the whole project; pyproject.toml reads it from here.
__version__ = "0.1.0"
