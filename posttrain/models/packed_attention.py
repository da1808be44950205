"""Attention for rows of several samples that must not see each other."""

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

PACKED_SDPA = "packed_sdpa"


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make the language model attend within each sample of a packed row (see `collate_packed`).

    transformers' own `sdpa` gives the same numbers for such rows, by a mask of [T, T] and at the cost of all
    T² pairs; here each sample is attended to on its own, which needs neither. FlashAttention's kernels read
    the same `position_ids` by themselves.

    Args:
        model: A Qwen-VL model, whose vision tower is left as it is, or a text model.
    """
    has_parts = "text_config" in model.config.sub_configs
    model.set_attn_implementation({"text_config": PACKED_SDPA} if has_parts else PACKED_SDPA)


def packed_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample of one row; an attention function as transformers calls it.

    Args:
        module: The attention layer.
        query: [1, heads, T, width].
        key: [1, key heads, T, width].
        value: As `key`.
        attention_mask: None: transformers makes no mask for an attention function of ours.
        position_ids: [1, T] places within the samples: each begins at 0.
        **kwargs: Scaling and dropout.

    Returns:
        [1, T, heads, width], and no weights.

    Raises:
        ValueError: If the batch is not one packed row.
    """
    if position_ids is None or attention_mask is not None or len(query) != 1:
        raise ValueError("packed_sdpa takes packed rows only, as collate_packed makes them")
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], query.shape[2]]
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    samples = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    attended = [sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in samples]
    return torch.cat(attended, dim=1), None


ALL_ATTENTION_FUNCTIONS.register(PACKED_SDPA, packed_sdpa)
