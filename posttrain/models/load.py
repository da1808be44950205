"""Load, freeze and save Qwen-VL checkpoints, and run them up to their last hidden states."""

import re
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Transpose

#: `model_type`s of the families, the mixture-of-experts variant of Qwen3-VL included.
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")

VISION_TOWER = re.compile(r"(^|\.)visual\.(?!merger\.|deepstack_merger_list\.)")
MERGER = re.compile(r"(^|\.)visual\.(merger|deepstack_merger_list)\.")


class LoadError(ValueError):
    """A checkpoint that cannot be trained as asked."""


def load_model(
    checkpoint: Path | str,
    *,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    freeze_vision_tower: bool = True,
    freeze_merger: bool = False,
    attn_implementation: str = "sdpa",
) -> PreTrainedModel:
    """Load a checkpoint's weights for training, from safetensors and without remote code.

    Args:
        checkpoint: Directory or Hugging Face id.
        dtype: Precision of the weights.
        freeze_vision_tower: Whether the patch embedding, positions and blocks of the vision tower stay fixed.
        freeze_merger: Whether the projections from vision to text stay fixed (DeepStack's included).
        attn_implementation: transformers' name of the attention kernel.

    Raises:
        LoadError: If it is no Qwen-VL checkpoint, weights are missing, or nothing matched a freeze setting.
    """
    try:
        config = AutoConfig.from_pretrained(str(checkpoint), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LoadError(f"{checkpoint}: no readable model configuration ({error})") from error
    if config.model_type not in MODEL_TYPES:
        raise LoadError(f"{checkpoint}: model_type {config.model_type!r} is none of {', '.join(MODEL_TYPES)}")
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            str(checkpoint),
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise LoadError(f"{checkpoint}: no readable *.safetensors weights ({error})") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise LoadError(
            f"{checkpoint}: {len(missing)} weights are missing, such as {missing[0]}; transformers would fill"
            " them with noise. Fetch the checkpoint again"
        )
    write_experts_as_published(model)
    if freeze_vision_tower:
        freeze(model, VISION_TOWER)
    if freeze_merger:
        freeze(model, MERGER)
    return model


def freeze(model: torch.nn.Module, pattern: re.Pattern[str]) -> int:
    """Fix every parameter whose name the pattern finds.

    Returns:
        How many parameters (tensors) were fixed.

    Raises:
        LoadError: If there is none: a frozen part that trains is a silent bug.
    """
    matched = [parameter for name, parameter in model.named_parameters() if pattern.search(name)]
    if not matched:
        raise LoadError(f"no parameter's name matches {pattern.pattern!r}, so nothing was frozen")
    for parameter in matched:
        parameter.requires_grad_(False)
    return len(matched)


def write_experts_as_published(model: Any) -> None:
    """Make `save_pretrained` write Qwen3-VL-MoE's experts as [experts, in, out], as they were published.

    transformers reads both layouts and tells them apart by their shapes, but writes [experts, out, in],
    which is how it holds them; vLLM reads the published layout only. Nothing happens to other models.

    Args:
        model: A transformers model of any class; its weights stay as they are.
    """
    if model.config.model_type != "qwen3_vl_moe":
        return
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    for conversion in conversions:
        for operation in getattr(conversion, "operations", ()):
            if isinstance(operation, Transpose):
                operation.check_dims = False
    model._weight_conversions = conversions  # what save_pretrained reverts


def save_model(model: PreTrainedModel, processor: ProcessorMixin, directory: Path) -> None:
    """Write a directory that transformers, PEFT and vLLM load as it is.

    Args:
        model: The model.
        processor: Of the checkpoint that it was loaded from (`Renderer.processor`).
        directory: Where to write; created where missing.
    """
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def forward_hidden(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The backbone without the language-model head.

    Log-probabilities are computed from these in chunks, so that [tokens × vocabulary] logits never exist.

    Args:
        model: As `load_model` returns it.
        batch: As `collate` returns it.

    Returns:
        [B, L, D] hidden states after the final norm.
    """
    backbone: Any = model.base_model
    return backbone(**batch, use_cache=False).last_hidden_state
