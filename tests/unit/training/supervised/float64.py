"""Qwen3-VL in float64 throughout: transformers rounds to float32 in two places. Also for child processes."""

import types
from typing import Any

import torch
from transformers.models.qwen3_vl import modeling_qwen3_vl


def in_float64(model: Any) -> Any:
    """The model, whose RMSNorm no longer rounds in between."""

    def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(norm, module)
    model.config.dtype = torch.float64
    return model.double()


def rotation(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[Any, ...]:
    """In place of the vision tower's `apply_rotary_pos_emb_vision`."""
    cos, sin = cos.unsqueeze(-2).double(), sin.unsqueeze(-2).double()
    return tuple((x * cos + modeling_qwen3_vl.rotate_half(x) * sin).to(x.dtype) for x in (q, k))
