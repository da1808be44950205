"""M-RoPE of Qwen2-VL and Qwen2.5-VL: text that follows a video gets positions after all of the video's.

transformers (5.16 to 5.19) continues after the larger side of the grid, even if the video's positions in time
reach further, so that text gets the same times as frames. The published checkpoints were trained with text
after the greatest position on any axis (`get_rope_index` in transformers 4, `rope2d.py` in Qwen's own
fine-tuning code), and vLLM serves them so.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.models.backbone import vision_backbone

#: Models in which a video is one run of placeholders; in Qwen3-VL text stands between the frames.
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")
#: The `mm_token_type_ids` of video placeholders.
VIDEO = 2


def continue_after_videos(model: PreTrainedModel) -> None:
    """Correct a model's `get_rope_index`; that of other models is left as it is."""
    if model.config.model_type not in MODEL_TYPES:
        return
    backbone = vision_backbone(model)
    original = backbone.get_rope_index

    def get_rope_index(
        input_ids: Tensor,
        mm_token_type_ids: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        known = {"mm_token_type_ids": mm_token_type_ids, "attention_mask": attention_mask}
        positions, _ = original(input_ids, **known, **kwargs)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        offsets = []
        for row, kept in enumerate(mask.bool()):
            found = _continued(positions[:, row, kept], mm_token_type_ids[row, kept])
            positions[:, row, kept] = found
            offsets.append(found.max() + 1 - found.shape[1])
        return positions, torch.stack(offsets)[:, None]

    backbone.get_rope_index = get_rope_index


def _continued(positions: Tensor, types: Tensor) -> Tensor:
    """Move the tokens after each video behind the video's greatest position.

    Args:
        positions: [3, T] positions in time, height and width.
        types: [T] `mm_token_type_ids`: 2 on the placeholders of videos.

    Returns:
        [3, T] positions.
    """
    positions = positions.clone()
    edges = torch.nn.functional.pad(types == VIDEO, (1, 1)).int().diff().nonzero().flatten().tolist()
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end < positions.shape[1]:
            last = positions[:, start:end].max()
            positions[:, end:] += (last + 1 - positions[:, end].min()).clamp(min=0)
    return positions
