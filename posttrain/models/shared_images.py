"""Images that occur several times in a batch go through the vision tower once.

The answers of a preference pair share their prompt and its images. transformers' models want the pixels of
every placeholder; here they get those of every distinct image, and what the tower makes of it is put where
it belongs. The gradient is the same: it comes from all the places.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: Key of a batch: for each image of `image_grid_thw`, which of the images in `pixel_values` it is.
IMAGE_INDEX = "image_index"


def share_images(batch: dict[str, Tensor], hashes: list[str]) -> dict[str, Tensor]:
    """Keep the pixels of the first occurrence of every image.

    Args:
        batch: As `collate` returns it.
        hashes: [images] what tells the images of `image_grid_thw` apart.

    Returns:
        The batch with fewer `pixel_values`, and with `image_index` [images]; as it was without images.
    """
    if not hashes:
        return batch
    distinct = list(dict.fromkeys(hashes))
    patches = batch["pixel_values"].split(batch["image_grid_thw"].prod(-1).tolist())
    return batch | {
        "pixel_values": torch.cat([patches[hashes.index(sha256)] for sha256 in distinct]),
        IMAGE_INDEX: torch.tensor([distinct.index(sha256) for sha256 in hashes]),
    }


@contextmanager
def sharing_images(model: nn.Module, image_index: Tensor | None) -> Iterator[None]:
    """Let a model's forward take a batch of `share_images`.

    Args:
        model: A Qwen-VL model; PEFT or DDP may be around it.
        image_index: Of the batch, which is then forwarded without it; None where it has no images.
    """
    if image_index is None:
        yield
        return
    backbone: Any = _backbone(model)
    wanted = image_index.tolist()
    first = [wanted.index(image) for image in range(max(wanted) + 1)]
    original = backbone.get_image_features

    def get_image_features(pixel_values: Tensor, image_grid_thw: Tensor, **kwargs: Any) -> Any:
        found = original(pixel_values, image_grid_thw[first], **kwargs)
        found.pooler_output = [found.pooler_output[image] for image in wanted]
        if getattr(found, "deepstack_features", None) is not None:
            found.deepstack_features = [
                [level[image] for image in wanted] for level in found.deepstack_features
            ]
        return found

    def get_video_features(*args: Any, **kwargs: Any) -> Any:
        backbone.get_image_features = original  # Qwen3-VL's asks it about videos as well
        try:
            return original_of_videos(*args, **kwargs)
        finally:
            backbone.get_image_features = get_image_features

    original_of_videos = backbone.get_video_features
    backbone.get_image_features, backbone.get_video_features = get_image_features, get_video_features
    try:
        yield
    finally:
        del backbone.get_image_features, backbone.get_video_features


def _backbone(model: nn.Module) -> nn.Module:
    """The module that has the vision tower."""
    return next(module for module in model.modules() if hasattr(module, "visual"))
