"""Kernels that only some machines have: what the settings ask for is used, or refused with the reason."""

import importlib
import importlib.util
import types

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from posttrain.config.model import AttnImplementation, FusedLayers, kernel_packages

#: Liger's kernels that models get. Log-probs have a head of their own (`supervised_head`), so its losses stay
#: unused.
_SWITCHES = {
    "rms_norm": True,
    "rope": True,
    "swiglu": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}


def refusal(
    attn_implementation: AttnImplementation, fused_layers: FusedLayers, dtype: str, model_type: str
) -> str | None:
    """Tell why a model cannot be run with these kernels on this machine; None if it can.

    Args:
        attn_implementation: The kernels of attention.
        fused_layers: The kernels of norms, gated units and rotary positions.
        dtype: Precision of the model's computations.
        model_type: The architecture, as its `config.json` says it.
    """
    for use in kernel_packages(attn_implementation, fused_layers):
        key = ".".join(map(str, use.key))
        asked = f"model.{key}: {attn_implementation if key == 'attn_implementation' else fused_layers}"
        if importlib.util.find_spec(use.module) is None:
            return f"{asked} needs {use.module}, which is not installed: {use.remedy}, or remove the key"
        if not torch.cuda.is_available():
            return f"{asked} runs on GPUs, and this process has none: remove the key"
    if attn_implementation != "sdpa" and dtype == "float32":
        return f"model.attn_implementation: {attn_implementation} has no float32: set model.dtype: bfloat16"
    if fused_layers == "liger" and model_type not in _registry().MODEL_TYPE_TO_APPLY_LIGER_FN:
        return f"model.fused_layers: liger has no kernels for {model_type} models: remove the key"
    return None


def fuse_layers(model: PreTrainedModel) -> None:
    """Replace a model's RMSNorm, SwiGLU and rotary positions by Liger's kernels.

    Liger replaces the function of rotary positions for all models of the architecture in this process.

    Args:
        model: A model of an architecture that Liger covers, before it is wrapped; changed in place.
    """
    model_type = model.config.model_type
    # Liger's fused experts take no adapters and no shards; transformers' own stay.
    apply_liger_kernel(model, _SWITCHES | {"swiglu": model_type != "qwen3_vl_moe"})
    if model_type == "qwen3_vl":  # of which Liger takes the switch, and leaves the layers as they are
        unit = importlib.import_module("liger_kernel.transformers").LigerSwiGLUMLP
        for layer in model.base_model.get_submodule("language_model.layers").children():
            mlp = layer.get_submodule("mlp")
            mlp.forward = types.MethodType(unit.forward, mlp)


def _registry() -> types.ModuleType:
    """Return Liger's module of architectures; importing it loads the kernels, so only who wants them does."""
    return importlib.import_module("liger_kernel.transformers.monkey_patch")
