"""One call of the vision tower for all that a batch shows, also where it shows nothing.

transformers' models call the tower once for a batch's images and once for its videos. Where its blocks are
sharded, a call gathers them and reduces their gradients together with the other ranks: a rank with images and
videos would do so twice and a rank with text alone never, and each would wait for the other. Here every batch
is one call. A tower that is not sharded, such as a frozen one, is not called for text alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from posttrain.models.backbone import ImageFeatures, VisionBackbone, vision_backbone


@dataclass
class Shown:
    """The images or the videos of a batch.

    Attributes:
        pixels: [patches, values] pixels of all that are distinct.
        grids: [distinct, 3] their sizes in patches.
        order: For each occurrence, in the order of the placeholders, which one it is.
    """

    pixels: Tensor
    grids: Tensor
    order: Sequence[int]


@dataclass
class Features:
    """What the language model takes of a tower's output.

    Attributes:
        pooler_output: For each image or video, [tokens, D] features.
        deepstack_features: The same for each level of DeepStack.
    """

    pooler_output: list[Tensor]
    deepstack_features: list[list[Tensor]]


def one_tower_call(model: PreTrainedModel) -> None:
    """Let a model's forward pass call the vision tower once for images and videos together.

    It then also takes batches that hold the pixels of each of them once (`images_once` of
    `posttrain.rendering.collation.collate`). Results and gradients are those of transformers, except
    that gradient checkpointing no longer has the tower's input require one.

    Args:
        model: A Qwen-VL model, before it is wrapped; it is changed in place. A text model is left as it is.
    """
    if "vision_config" not in model.config.sub_configs:
        return
    backbone = vision_backbone(model)
    original = backbone.forward

    def forward(
        *args: object,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        image_index: Tensor | None = None,
        video_index: Tensor | None = None,
        **kwargs: object,
    ) -> object:
        shown: dict[str, Shown] = {}
        if pixel_values is not None:
            assert image_grid_thw is not None
            shown["image"] = _distinct(pixel_values, image_grid_thw, image_index)
        if pixel_values_videos is not None:
            assert video_grid_thw is not None
            shown["video"] = _distinct(pixel_values_videos, video_grid_thw, video_index)
        if not shown and _is_sharded(backbone.visual):
            shown["image"] = _nothing(backbone.visual)
        if shown:
            kwargs["mm_encoder_outputs"] = _features(backbone, shown)
        return original(*args, image_grid_thw=image_grid_thw, video_grid_thw=video_grid_thw, **kwargs)

    backbone.forward = forward


def _is_sharded(tower: nn.Module) -> bool:
    """Tell whether FSDP gathers parts of the tower when they are called.

    What belongs to the unit of the whole model, such as the merger, is gathered in any case.
    """
    return any(isinstance(module, FSDPModule) for module in tower.modules())


def _distinct(pixels: Tensor, grids: Tensor, index: Tensor | None) -> Shown:
    """Find the size of each distinct image or video; `collate` describes the index."""
    if index is None:
        return Shown(pixels, grids, range(len(grids)))
    order = index.tolist()
    return Shown(pixels, grids[[order.index(each) for each in range(max(order) + 1)]], order)


def _nothing(tower: nn.Module) -> Shown:
    """Make the smallest picture that the tower takes, which occurs nowhere.

    So results stay as they are and every gradient of the tower is zero; but all are computed, in the order of
    a batch that shows something.
    """
    config = cast("PreTrainedModel", tower).config
    side = config.spatial_merge_size
    patch = config.in_channels * config.temporal_patch_size * config.patch_size**2
    device = next(tower.parameters()).device
    grid = torch.tensor([[1, side, side]], device=device)
    return Shown(torch.zeros(side * side, patch, device=device), grid, [])


def _features(backbone: VisionBackbone, shown: dict[str, Shown]) -> dict[str, Features]:
    """Compute the features of images and videos, as transformers' models take them ready-made."""
    pixels = [each.pixels for each in shown.values()]
    grids = torch.cat([each.grids for each in shown.values()])
    together = torch.cat(pixels) if len(pixels) > 1 else pixels[0]  # they are large: one kind is not copied
    found = backbone.get_image_features(together, grids, return_dict=True)
    features, before = {}, 0
    for kind, each in shown.items():
        features[kind] = _picked(found, [before + place for place in each.order])
        before += len(each.grids)
    return features


def _picked(found: ImageFeatures, places: Sequence[int]) -> Features:
    """Take the features of some pictures; of none, no row of the first one's, so that autograd reaches it."""

    def picked(features: Sequence[Tensor]) -> list[Tensor]:
        return [features[place] for place in places] or [features[0][:0]]

    levels = getattr(found, "deepstack_features", None) or ()
    return Features(picked(found.pooler_output), [picked(level) for level in levels])
