"""Run the vision tower once for images that occur several times in a batch.

The two answers of a preference pair have the same prompt and images. transformers' models want the pixels of
every occurrence of an image; here they get those of each distinct image, and its features are put at every
place where it occurs. The gradient is the same: it is the sum over all these places.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from posttrain.models.backbone import ImageFeatures, vision_backbone

#: Key of a batch's [images] integers: the number in `pixel_values` of the image of each `image_grid_thw` row.
IMAGE_INDEX = "image_index"


def share_images(batch: dict[str, Tensor], hashes: list[str]) -> dict[str, Tensor]:
    """Keep only the pixels of the first occurrence of every image.

    Args:
        batch: A batch from `collate`.
        hashes: [images] hash of each image in `image_grid_thw`; equal hashes mean the same image.

    Returns:
        The batch with fewer `pixel_values`, and with `image_index` [images]. A batch without images is
        returned as it is.
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
    """Let a model take a batch from `share_images` within this context.

    Args:
        model: A Qwen-VL model, which PEFT may wrap.
        image_index: The batch's `image_index`, which is not passed to the model; None if the batch has no
            images.
    """
    if image_index is None:
        yield
        return
    backbone = vision_backbone(model)
    wanted = image_index.tolist()
    first = [wanted.index(image) for image in range(max(wanted) + 1)]
    original = backbone.get_image_features

    def get_image_features(pixel_values: Tensor, image_grid_thw: Tensor, **kwargs: object) -> ImageFeatures:
        found = original(pixel_values, image_grid_thw[first], **kwargs)
        found.pooler_output = [found.pooler_output[image] for image in wanted]
        if getattr(found, "deepstack_features", None) is not None:
            found.deepstack_features = [
                [level[image] for image in wanted] for level in found.deepstack_features
            ]
        return found

    def get_video_features(*args: object, **kwargs: object) -> object:
        backbone.get_image_features = original  # which Qwen3-VL's method calls for videos
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
