"""The part of a Qwen-VL model below the language-model head, as far as its methods are replaced here."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


class ImageFeatures(Protocol):
    """What a vision tower returns.

    Attributes:
        pooler_output: For each image, [tokens, D] features.
        deepstack_features: Qwen3-VL: the same for each level of DeepStack; other families have none.
    """

    pooler_output: list[Tensor]
    deepstack_features: list[list[Tensor]]


@runtime_checkable
class VisionBackbone(Protocol):
    """A transformers module that has the vision tower.

    Attributes:
        visual: The vision tower.
        forward: From token ids and pixels to hidden states.
        get_image_features: From pixels and grids to features; it does the same for videos.
        get_rope_index: From token ids to the positions [3, B, L] of M-RoPE, and their offsets [B, 1].
    """

    visual: nn.Module
    forward: Callable[..., object]
    get_image_features: Callable[..., ImageFeatures]
    get_rope_index: Callable[..., tuple[Tensor, Tensor]]


def vision_backbone(model: nn.Module) -> VisionBackbone:
    """Find the module that has the vision tower, inside whatever wraps it (PEFT).

    Raises:
        StopIteration: If the model has no vision tower.
    """
    return next(module for module in model.modules() if isinstance(module, VisionBackbone))
