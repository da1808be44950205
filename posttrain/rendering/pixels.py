"""Image and video files to what the vision tower takes, pre-processed once and kept within a bound."""

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.media.images import image_size, open_image, pixel_hash
from posttrain.media.videos import video_files, video_hash
from posttrain.rendering.video_frames import VideoFrames
from posttrain.types import ImageRef, VideoRef


class ImageChangedError(ValueError):
    """A file's content is no longer what its reference was made for."""


@dataclass(frozen=True)
class Pixels:
    """A pre-processed image or video; shared, so never written to.

    Attributes:
        values: [patches, values a patch] `pixel_values` or `pixel_values_videos`.
        grid_thw: [3] patches along time, height and width.
        sha256: Hash of the original pixels; of a video, that of its files.
        seconds_per_grid: Of a video, from one pair of frames to the next.
    """

    values: torch.Tensor
    grid_thw: torch.Tensor
    sha256: str
    seconds_per_grid: float = 0.0


class PixelCache:
    """The one place where images and videos are decoded and resized; the least recently used are dropped.

    Example:
        frames = VideoFrames(processor, VideoSettings())
        cache = PixelCache(processor.image_processor, frames, max_bytes=512 * 2**20)
        cache.load(ImageRef("/data/scene.png"))
    """

    def __init__(self, image_processor: Any, frames: VideoFrames, max_bytes: int):
        """Start empty.

        Args:
            image_processor: The checkpoint's own.
            frames: How videos are sampled.
            max_bytes: Upper bound of what is kept, in bytes of pixel values.
        """
        self._image_processor = image_processor
        self._frames = frames
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Pixels] = OrderedDict()
        self._hashes: dict[tuple[tuple[str, int], ...], str] = {}

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
        version = (_version(ref.path),)
        sha256 = ref.sha256 or self._hashes.get(version, "")
        if sha256 in self._kept:
            self._kept.move_to_end(sha256)
            return self._kept[sha256]
        image = open_image(ref.path)
        found = pixel_hash(image)
        _check_unchanged(ref.path, found, ref.sha256)
        self._hashes[version] = found
        if found not in self._kept:
            made = self._image_processor(images=[image], return_tensors="pt")
            self._keep(found, Pixels(made["pixel_values"], made["image_grid_thw"][0], found))
        return self._kept[found]

    def load_video(self, ref: VideoRef) -> Pixels:
        """Sample, decode, check and pre-process a video, unless it is still held.

        Raises:
            ImageChangedError: If the reference has a hash and the files have another.
            VideoError: If it cannot be read as a video.
        """
        key = str(dataclasses.replace(ref, sha256=self.hash_video(ref)))
        if key not in self._kept:
            plan = self._frames.plan(ref)
            values = self._frames.pixels(ref, plan)
            self._keep(key, Pixels(values, plan.grid_thw, self.hash_video(ref), plan.seconds_per_grid))
        self._kept.move_to_end(key)
        return self._kept[key]

    def hash_video(self, ref: VideoRef) -> str:
        """The hash of a video's files, which are read once for it unless they change.

        Raises:
            ImageChangedError: If the reference has a hash and the files have another.
            VideoError: If a file cannot be read.
        """
        version = tuple(_version(path) for path in video_files(ref))
        if version not in self._hashes:
            self._hashes[version] = video_hash(ref)
        _check_unchanged(ref.paths[0], self._hashes[version], ref.sha256)
        return self._hashes[version]

    def _keep(self, key: str, pixels: Pixels) -> None:
        self._kept[key] = pixels
        self._bytes += pixels.values.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.values.nbytes


def _check_unchanged(path: str, found: str, expected: str) -> None:
    if expected and found != expected:
        raise ImageChangedError(
            f"{path}: the content has hash {found[:12]}…, not {expected[:12]}… as when it was first seen;"
            " restore the file, or start anew with the changed one"
        )


class ImageSizes(PixelCache):
    """A cache for where tokens are only counted: of images the header is read, of videos less.

    What it gives has as many patches as the real one, in a row (so a quarter turn makes no difference), but
    no values and no hash.
    """

    def load(self, ref: ImageRef) -> Pixels:
        """An image's number of patches; raises ImageError if there is no such image."""
        width, height = image_size(ref.path)
        patches = self._image_processor.get_number_of_image_patches(height, width)
        return Pixels(torch.empty(0), torch.tensor([1, 1, patches]), "")

    def hash_video(self, ref: VideoRef) -> str:
        """Nothing, which costs nothing."""
        return ""


def _version(path: str) -> tuple[str, int]:
    """Path and time of the last change: a rewritten file is another image."""
    return (path, Path(path).stat().st_mtime_ns if Path(path).is_file() else 0)
