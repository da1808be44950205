"""Image files to what the vision tower takes, pre-processed once and kept within a bound."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.images import open_image, pixel_hash
from posttrain.types import ImageRef


class ImageChangedError(ValueError):
    """A file's pixels are no longer those that its reference was made for."""


@dataclass(frozen=True)
class Pixels:
    """A pre-processed image; shared, so never written to.

    Attributes:
        values: [patches, values a patch] `pixel_values`.
        grid_thw: [3] patches along time, height and width.
        sha256: Hash of the original pixels.
    """

    values: torch.Tensor
    grid_thw: torch.Tensor
    sha256: str


class PixelCache:
    """The one place where images are decoded and resized; the least recently used are dropped.

    Example:
        PixelCache(processor.image_processor, max_bytes=512 * 2**20).load(ImageRef("/data/scene.png"))
    """

    def __init__(self, image_processor: Any, max_bytes: int):
        """Start empty.

        Args:
            image_processor: The checkpoint's own.
            max_bytes: Upper bound of what is kept, in bytes of pixel values.
        """
        self._image_processor = image_processor
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Pixels] = OrderedDict()
        self._hashes: dict[tuple[str, int], str] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of pixel values held now."""
        return self._bytes

    def load(self, ref: ImageRef) -> Pixels:
        """Decode, check and pre-process an image, unless it is still held.

        Raises:
            ImageChangedError: If the reference has a hash and the file's pixels have another.
            ImageError: If the file cannot be read as an image.
        """
        sha256 = ref.sha256 or self._hashes.get(_version(ref.path), "")
        if sha256 in self._kept:
            self._kept.move_to_end(sha256)
            return self._kept[sha256]
        image = open_image(ref.path)
        found = pixel_hash(image)
        if ref.sha256 and found != ref.sha256:
            raise ImageChangedError(
                f"{ref.path}: the pixels have hash {found[:12]}…, not {ref.sha256[:12]}… as when the image"
                " was first seen; restore the file, or start anew with the changed one"
            )
        self._hashes[_version(ref.path)] = found
        if found not in self._kept:
            made = self._image_processor(images=[image], return_tensors="pt")
            self._keep(Pixels(made["pixel_values"], made["image_grid_thw"][0], found))
        return self._kept[found]

    def _keep(self, pixels: Pixels) -> None:
        self._kept[pixels.sha256] = pixels
        self._bytes += pixels.values.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.values.nbytes


def _version(path: str) -> tuple[str, int]:
    """Path and time of the last change: a rewritten file is another image."""
    return (path, Path(path).stat().st_mtime_ns if Path(path).is_file() else 0)
