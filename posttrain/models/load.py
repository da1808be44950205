"""Load, freeze and save checkpoints, and compute their last hidden states."""

import importlib.util
import re
from pathlib import Path
from typing import Literal

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
from posttrain.config.model import AttnImplementation, FusedLayers
from posttrain.models.kernels import fuse_layers, refusal
from posttrain.models.video_positions import continue_after_videos
from posttrain.models.vision_calls import one_tower_call

#: The `model_type`s of Qwen-VL models, with the mixture-of-experts variant of Qwen3-VL.
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")

VISION_TOWER = re.compile(r"(^|\.)visual\.(?!merger\.|deepstack_merger_list\.)")
MERGER = re.compile(r"(^|\.)visual\.(merger|deepstack_merger_list)\.")


class LoadError(ValueError):
    """A checkpoint cannot be loaded or trained as asked."""


def load_model(
    checkpoint: Path | str,
    *,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    freeze_vision_tower: bool = True,
    freeze_merger: bool = False,
    quantization: Quantization | None = None,
    attn_implementation: AttnImplementation = "sdpa",
    fused_layers: FusedLayers = "none",
) -> PreTrainedModel:
    """Load a checkpoint's weights for training, from safetensors and without remote code.

    Args:
        checkpoint: A checkpoint's directory, or Hugging Face id.
        dtype: Precision of the weights.
        freeze_vision_tower: Whether to fix the patch embedding, positions and blocks of the vision tower;
            without effect on a model that has none.
        freeze_merger: Whether to fix the projections from vision to text, DeepStack's included.
        quantization: How to quantize the language model's linear layers, if only adapters are trained.
        attn_implementation: Kernels of attention, in the language model and in the vision tower.
        fused_layers: Kernels of RMSNorm, SwiGLU and rotary positions.

    Raises:
        LoadError: If the checkpoint is neither a Qwen-VL nor a causal language model, if weights or the
            parameters to freeze are missing, or if this machine lacks what kernels or quantization need.
    """
    config = _configuration(checkpoint)
    if reason := refusal(attn_implementation, fused_layers, dtype, config.model_type):
        raise LoadError(reason)
    try:
        loaded = auto_model(config).from_pretrained(
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
        kernels = f"model.attn_implementation: {attn_implementation}"
        asked = f"lora.quantization: {quantization}" if quantization else kernels
        raise LoadError(f"{asked}: {error}") from error
    except OSError as error:
        raise LoadError(f"{checkpoint}: no readable *.safetensors weights ({error})") from error
    model, info = loaded  # pyright: ignore[reportGeneralTypeIssues] (a pair with output_loading_info)
    _refuse_missing(checkpoint, info["missing_keys"])
    write_experts_as_published(model)
    for adapt in (continue_after_videos, one_tower_call, leave_inputs_without_gradients):
        adapt(model)
    if fused_layers != "none":
        fuse_layers(model)
    if freeze_vision_tower and sees_images(config):
        freeze(model, VISION_TOWER)
    if freeze_merger:
        freeze(model, MERGER)
    return model


def _configuration(checkpoint: Path | str) -> PreTrainedConfig:
    """Read a checkpoint's configuration.

    Raises:
        LoadError: If the checkpoint is neither a Qwen-VL nor a causal language model.
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
    return config


def loaded_type(model: torch.nn.Module) -> torch.dtype:
    """Return the type that a model was loaded in and computes in; its parameters may be kept in another."""
    return model.config.dtype  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]


def in_vision_tower(parameter: str) -> bool:
    """Tell by a parameter's name whether it belongs to the vision tower, without the merger."""
    return VISION_TOWER.search(parameter) is not None


def leave_inputs_without_gradients(model: PreTrainedModel) -> None:
    """Keep gradient checkpointing from asking for gradients of embeddings, those of images' patches included.

    transformers does so for a form of checkpointing that is not used here; a frozen vision tower would run
    twice forward and once backward for nothing.

    Args:
        model: The model; changed in place.
    """
    vars(model)["enable_input_require_grads"] = lambda: None


def _refuse_missing(checkpoint: Path | str, weights: set[str]) -> None:
    """Raise a LoadError if a checkpoint lacks weights."""
    if missing := sorted(weights):
        raise LoadError(
            f"{checkpoint}: {len(missing)} weights are missing, such as {missing[0]}; transformers would fill"
            " them with noise. Fetch the checkpoint again"
        )


def sees_images(config: PreTrainedConfig) -> bool:
    """Tell whether a model of this configuration is a Qwen-VL model, and not a text model."""
    return config.model_type in MODEL_TYPES


def _is_causal(config: PreTrainedConfig) -> bool:
    """Tell whether a model of this configuration is a causal language model."""
    return any(name.endswith("ForCausalLM") for name in config.architectures or ())


def auto_model(config: PreTrainedConfig) -> type[AutoModelForImageTextToText | AutoModelForCausalLM]:
    """Choose the transformers class that loads a model of this configuration."""
    return AutoModelForImageTextToText if sees_images(config) else AutoModelForCausalLM


def _quantized(quantization: Quantization, dtype: str) -> BitsAndBytesConfig:
    """Make the settings of bitsandbytes; vision tower, merger and head are not quantized."""
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
    """Freeze every parameter whose name contains a match of the pattern.

    Returns:
        The number of parameters (tensors) that were frozen.

    Raises:
        LoadError: If no name matches, because then something would train that was meant to be frozen.
    """
    matched = [parameter for name, parameter in model.named_parameters() if pattern.search(name)]
    if not matched:
        raise LoadError(f"no parameter's name matches {pattern.pattern!r}, so nothing was frozen")
    for parameter in matched:
        parameter.requires_grad_(False)
    return len(matched)


def write_experts_as_published(model: PreTrainedModel) -> None:
    """Make `save_pretrained` write Qwen3-VL-MoE's experts as [experts, in, out], as they were published.

    transformers reads both layouts and tells them apart by their shapes, but holds and writes
    [experts, out, in]; vLLM reads the published layout only. Other models are left unchanged.

    Args:
        model: A transformers model of any class; its weights are not touched.
    """
    if model.config.model_type != "qwen3_vl_moe":
        return
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    for conversion in conversions:
        for operation in getattr(conversion, "operations", ()):
            if isinstance(operation, Transpose):
                operation.check_dims = False
    vars(model)["_weight_conversions"] = conversions  # save_pretrained applies their inverse


def save_model(
    model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write a checkpoint that transformers, PEFT and vLLM can load.

    Args:
        model: The model.
        processor: The processor that the model was trained with (`Renderer.processor`).
        directory: Where to write; created if missing.
    """
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def forward_hidden(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run a model without its language-model head.

    Log-probs are computed from the hidden states in chunks, so that [tokens, vocabulary] logits never exist.

    Args:
        model: A model from `load_model`.
        batch: A batch from `collate`.

    Returns:
        [B, L, D] hidden states after the final norm.
    """
    return model.base_model(**batch, use_cache=False).last_hidden_state
