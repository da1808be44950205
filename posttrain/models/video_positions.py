"""M-RoPE of Qwen2-VL and Qwen2.5-VL: what follows a video has positions after all of the video's.

transformers (5.16 to 5.19) goes on after the larger side of the grid, also where a video's time reaches
further, so that text shares its times with frames. The published checkpoints were trained with text after the
greatest position on any axis (`get_rope_index` in transformers 4, `rope2d.py` of Qwen's own fine-tuning
code), and vLLM serves them so.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

#: Those whose videos are one run of placeholders; Qwen3-VL's frames are apart, each with its own text.
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")
VIDEO = 2


def continue_after_videos(model: PreTrainedModel) -> None:
    """Mend a model's `get_rope_index`; Qwen3-VL's stays as it is."""
    if model.config.model_type not in MODEL_TYPES:
        return
    backbone: Any = model.base_model
    original = backbone.get_rope_index

    def get_rope_index(input_ids: Tensor, mm_token_type_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        positions, _ = original(input_ids, mm_token_type_ids=mm_token_type_ids, **kwargs)
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        offsets = []
        for row, kept in enumerate(mask.bool()):
            found = _continued(positions[:, row, kept], mm_token_type_ids[row, kept])
            positions[:, row, kept] = found
            offsets.append(found.max() + 1 - found.shape[1])
        return positions, torch.stack(offsets)[:, None]

    backbone.get_rope_index = get_rope_index


def _continued(positions: Tensor, types: Tensor) -> Tensor:
    """Move what follows each video behind its greatest position.

    Args:
        positions: [3, T] time, height and width.
        types: [T] 2 on the placeholders of videos.
    """
    positions = positions.clone()
    edges = torch.nn.functional.pad(types == VIDEO, (1, 1)).int().diff().nonzero().flatten().tolist()
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end < positions.shape[1]:
            last = positions[:, start:end].max()
            positions[:, end:] += (last + 1 - positions[:, end].min()).clamp(min=0)
    return positions
