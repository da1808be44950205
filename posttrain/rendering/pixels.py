"""Images and videos as the vision tower takes them, cached within a bound."""

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch

from posttrain.media.images import image_size, open_image, pixel_hash
from posttrain.media.videos import video_files, video_hash
from posttrain.rendering.processors import ImageProcessor
from posttrain.rendering.video_frames import VideoFrames
from posttrain.types import ImageRef, VideoRef


class ImageChangedError(ValueError):
    """A file has changed since its reference was made."""


@dataclass(frozen=True)
class Pixels:
    """A pre-processed image or video, which must not be changed because it is shared.

    Attributes:
        values: [patches, values per patch] `pixel_values` or `pixel_values_videos`.
        grid_thw: [3] number of patches along time, height and width.
        sha256: Hash of an image's original pixels, or of a video's files.
        seconds_per_grid: Seconds from one pair of a video's frames to the next.
    """

    values: torch.Tensor
    grid_thw: torch.Tensor
    sha256: str
    seconds_per_grid: float = 0.0


class PixelCache:
    """The one place where images and videos are decoded and resized; it keeps those used most recently.

    Example:
        frames = VideoFrames(processor, VideoSettings())
        cache = PixelCache(processor.image_processor, frames, max_bytes=512 * 2**20)
        cache.load(ImageRef("/data/scene.png"))
    """

    def __init__(self, image_processor: ImageProcessor, frames: VideoFrames, max_bytes: int):
        """Start with nothing in the cache.

        Args:
            image_processor: The checkpoint's own.
            frames: Samples and resizes videos.
            max_bytes: Most bytes of pixel values to keep.
        """
        self._image_processor = image_processor
        self._frames = frames
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Pixels] = OrderedDict()
        self._hashes: dict[tuple[tuple[str, int], ...], str] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of pixel values that are in the cache now."""
        return self._bytes

    def load(self, ref: ImageRef) -> Pixels:
        """Decode, check and pre-process an image, unless it is in the cache.

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
        """Sample, decode, check and pre-process a video, unless it is in the cache.

        Raises:
            ImageChangedError: If the reference has a hash and the files have another.
            VideoError: If the video cannot be read.
        """
        key = str(dataclasses.replace(ref, sha256=self.hash_video(ref)))
        if key not in self._kept:
            plan = self._frames.plan(ref)
            values = self._frames.pixels(ref, plan)
            self._keep(key, Pixels(values, plan.grid_thw, self.hash_video(ref), plan.seconds_per_grid))
        self._kept.move_to_end(key)
        return self._kept[key]

    def hash_video(self, ref: VideoRef) -> str:
        """Compute the hash of a video's files; they are read once, unless they change.

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
        """Put pixels into the cache, and drop what was not used for longest."""
        self._kept[key] = pixels
        self._bytes += pixels.values.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.values.nbytes


def _check_unchanged(path: str, found: str, expected: str) -> None:
    """Refuse a file whose hash is not the expected one; an empty one is not compared."""
    if expected and found != expected:
        raise ImageChangedError(
            f"{path}: the content has hash {found[:12]}…, not {expected[:12]}… as when it was first seen;"
            " restore the file, or start anew with the changed one"
        )


class ImageSizes(PixelCache):
    """Sizes in place of pixels, for counting tokens: it reads headers, and decodes and caches nothing.

    Its `Pixels` have the right number of patches, in one row (so that it does not matter whether an image is
    to be turned by 90°), but no values and no hash.
    """

    def load(self, ref: ImageRef) -> Pixels:
        """Return an image's number of patches; raises ImageError if the image cannot be read."""
        width, height = image_size(ref.path)
        patches = self._image_processor.get_number_of_image_patches(height, width)
        return Pixels(torch.empty(0), torch.tensor([1, 1, patches]), "")

    def hash_video(self, ref: VideoRef) -> str:
        """Return "" without reading the files, because counting tokens needs no hash."""
        return ""


def _version(path: str) -> tuple[str, int]:
    """Return a file's path and time of last change, by which a rewritten file is noticed."""
    return (path, Path(path).stat().st_mtime_ns if Path(path).is_file() else 0)
