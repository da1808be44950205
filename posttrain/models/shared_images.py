"""Keep the pixels of images that occur several times in a batch once.

The two answers of a preference pair have the same prompt and images. transformers' models want the pixels of
every occurrence of an image; after `one_tower_call` they take those of each distinct image, and put its
features at every place where it occurs. The gradient is the same: it is the sum over all these places.
"""

import torch
from torch import Tensor

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
