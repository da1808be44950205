"""Attention in packed rows, whose samples must not see each other."""

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

PACKED_SDPA = "packed_sdpa"


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make the language model attend within each sample of a packed row (see `collate_packed`).

    transformers' own `sdpa` gives the same numbers for such rows, but needs a mask of [T, T] and computes all
    T² pairs; here attention is computed for each sample on its own. FlashAttention's kernels need no such
    help: they read the same `position_ids`.

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
    """Compute causal attention within each sample of a row; transformers calls this from attention layers.

    Args:
        module: The attention layer.
        query: [1, heads, T, width].
        key: [1, key heads, T, width].
        value: [1, key heads, T, width].
        attention_mask: None, because transformers makes no mask for registered attention functions.
        position_ids: [1, T] place of each token within its sample, which begins at 0.
        **kwargs: Scaling and dropout, passed on.

    Returns:
        [1, T, heads, width], and None in the place of attention weights.

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
