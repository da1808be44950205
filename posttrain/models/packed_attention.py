"""Attention in packed rows, whose samples must not see each other."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

PACKED_SDPA = "packed_sdpa"
_PACKED_ONLY = "packed attention takes packed rows only, as collate_packed makes them"


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make the language model attend within each sample of a packed row (see `collate_packed`).

    Where a row's samples begin is found once in a forward pass, before the first layer, because it makes a
    GPU wait; every layer, and the backward pass with gradient checkpointing, gets it as arguments.

    FlashAttention's kernels take rows of samples as they are. transformers' `sdpa` gives the same numbers,
    but needs a mask of [T, T] and computes all T² pairs; here attention is computed for each sample on its
    own.

    Args:
        model: A Qwen-VL model, whose vision tower is left as it is, or a text model; before it is wrapped.
    """
    has_parts = "text_config" in model.config.sub_configs
    decoder = model.base_model.get_submodule("language_model") if has_parts else model.base_model
    if not is_flash_attention_requested(model.config.get_text_config()):
        model.set_attn_implementation({"text_config": PACKED_SDPA} if has_parts else PACKED_SDPA)
    decoder.register_forward_pre_hook(_tell_samples, with_kwargs=True)


def _tell_samples(
    decoder: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]
) -> tuple[tuple[object, ...], dict[str, Any]]:
    """Add the places of a row's samples to the arguments that the decoder hands to its attention layers.

    They cannot be arguments of the whole model, which would hand them to the vision tower as well.

    Raises:
        ValueError: If the batch is not one packed row.
    """
    positions: Tensor | None = kwargs.get("position_ids")
    if positions is None or kwargs.get("attention_mask") is not None or positions.shape[-2] != 1:
        raise ValueError(_PACKED_ONLY)
    if positions.ndim == 3 and len(positions) != 4:  # without the places within the samples
        raise ValueError(_PACKED_ONLY)
    places = positions.flatten(0, -2)[0].cpu()
    edges = nn.functional.pad((places == 0).nonzero().flatten(), (0, 1), value=len(places))
    lengths = edges.diff().tolist()
    if not is_flash_attention_requested(decoder.config):
        return args, kwargs | {"sample_lengths": lengths}
    ends = edges.to(positions.device, torch.int32)
    longest = max(lengths)
    return args, kwargs | {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def packed_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sample_lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each sample of a row; transformers calls this from attention layers.

    Args:
        module: The attention layer.
        query: [1, heads, T, width].
        key: [1, key heads, T, width].
        value: [1, key heads, T, width].
        attention_mask: None, because transformers makes no mask for registered attention functions.
        sample_lengths: The number of tokens of each sample, T in all.
        **kwargs: Scaling and dropout, passed on.

    Returns:
        [1, T, heads, width], and None in the place of attention weights.

    Raises:
        ValueError: If the batch is not one packed row.
    """
    if sample_lengths is None or attention_mask is not None or len(query) != 1:
        raise ValueError(_PACKED_ONLY)
    samples = zip(*(states.split(sample_lengths, dim=2) for states in (query, key, value)), strict=True)
    attended = [sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in samples]
    return torch.cat(attended, dim=1), None


ALL_ATTENTION_FUNCTIONS.register(PACKED_SDPA, packed_sdpa)
