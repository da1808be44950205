"""Load, freeze and save checkpoints, and run them up to their last hidden states."""

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Transpose

from posttrain.config.lora import Quantization
from posttrain.models.video_positions import continue_after_videos

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
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """Load a checkpoint's weights for training, from safetensors and without remote code.

    Args:
        checkpoint: Directory or Hugging Face id.
        dtype: Precision of the weights.
        freeze_vision_tower: Whether the patch embedding, positions and blocks of the vision tower stay fixed,
            of a model that has one.
        freeze_merger: Whether the projections from vision to text stay fixed (DeepStack's included).
        attn_implementation: transformers' name of the attention kernel.
        quantization: Form of the language model's linear layers, for adapters alone to be trained.

    Raises:
        LoadError: If it is no model of these kinds, or weights, what to freeze or bitsandbytes are missing.
    """
    try:
        config = AutoConfig.from_pretrained(str(checkpoint), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LoadError(f"{checkpoint}: no readable model configuration ({error})") from error
    if not (sees_images(config) or _is_causal(config)):
        raise LoadError(
            f"{checkpoint}: model_type {config.model_type!r} is none of {', '.join(MODEL_TYPES)}, and no"
            " causal language model"
        )
    try:
        loaded: Any = auto_model(config).from_pretrained(
            str(checkpoint),
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            quantization_config=_quantized(quantization, dtype) if quantization else None,
        )
    except ImportError as error:
        raise LoadError(f"lora.quantization: {quantization}: {error}") from error
    except OSError as error:
        raise LoadError(f"{checkpoint}: no readable *.safetensors weights ({error})") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise LoadError(
            f"{checkpoint}: {len(missing)} weights are missing, such as {missing[0]}; transformers would fill"
            " them with noise. Fetch the checkpoint again"
        )
    write_experts_as_published(model)
    continue_after_videos(model)
    if freeze_vision_tower and sees_images(config):
        freeze(model, VISION_TOWER)
    if freeze_merger:
        freeze(model, MERGER)
    return model


def sees_images(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration is a Qwen-VL; else it is a text model."""
    return config.model_type in MODEL_TYPES


def _is_causal(config: PreTrainedConfig) -> bool:
    return any(name.endswith("ForCausalLM") for name in config.architectures or ())


def auto_model(config: PreTrainedConfig) -> Any:
    """What loads a model of this configuration."""
    return AutoModelForImageTextToText if sees_images(config) else AutoModelForCausalLM


def _quantized(quantization: Quantization, dtype: str) -> BitsAndBytesConfig:
    """How bitsandbytes holds a model; vision tower, merger and head stay as they are."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LoadError(
            f"lora.quantization: {quantization} needs bitsandbytes: pip install 'posttrain[qlora]'"
        )
    return BitsAndBytesConfig(
        load_in_4bit=quantization == "nf4",
        load_in_8bit=quantization == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=["model.visual", "lm_head"],  # bitsandbytes' key for both forms
    )


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


def save_model(
    model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase, directory: Path
) -> None:
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
