"""Images and videos as the vision tower takes them: made once, some ahead, and kept within a bound."""

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from posttrain.media.images import image_size
from posttrain.media.videos import VideoError, video_files, video_hash
from posttrain.rendering.ahead import Ahead
from posttrain.rendering.pixel_limits import PixelLimits
from posttrain.rendering.pixel_making import PixelMaker, Pixels
from posttrain.types import ImageRef, VideoRef

#: Hashes of files that are remembered, so that a file that changes is noticed; about 400 bytes each.
HASHES_KEPT = 100_000
#: Path and time of last change of each of the files of an image or video.
Version = tuple[tuple[str, int], ...]


class ImageChangedError(ValueError):
    """A file has changed since its reference was made."""


@dataclass(frozen=True)
class MeasuredImage(ImageRef):
    """An image whose header has been read, and whose pixels have not.

    Attributes:
        version: What its file was then; when the pixels are loaded it must be the same.
    """

    version: Version = ()


@dataclass(frozen=True)
class MeasuredVideo(VideoRef):
    """A video whose header has been read, and whose frames have not; see `MeasuredImage`.

    Attributes:
        version: What its files were then.
    """

    version: Version = ()


class FileHashes:
    """The hashes of files that have been read, by which a file that changes is noticed; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Version, str] = OrderedDict()

    def get(self, version: Version) -> str:
        """Return the hash of files in a version; "" while it is unknown."""
        with self._lock:
            return self._known.get(version, "")

    def note(self, version: Version, sha256: str) -> None:
        """Note the hash of files, and forget the one that was noted first if there are many."""
        with self._lock:
            self._known[version] = sha256
            if len(self._known) > HASHES_KEPT:
                self._known.popitem(last=False)

    def expected(self, ref: ImageRef | VideoRef, path: str, now: Version) -> str:
        """Return the hash that a file must have; "" if it may have any.

        Args:
            ref: An image or a video, perhaps one whose size was read before.
            path: Its first file.
            now: The version in which its files are.

        Raises:
            ImageChangedError: If it has changed since it was measured, and nothing tells whether its content
                has.
        """
        measured = ref.version if isinstance(ref, MeasuredImage | MeasuredVideo) else now
        if ref.sha256 or measured == now:
            return ref.sha256
        known = self.get(measured)
        if not known:
            raise ImageChangedError(
                f"{path}: the file has changed since its size was read; leave the files of a dataset as they"
                " are while a stage uses them, and start the stage again"
            )
        return known


class PixelCache:
    """The one place where a model in training has its images and videos loaded; it keeps the last used.

    One thread uses it. Others, its own, make what is planned by `prepare`.

    Attributes:
        maker: Decodes and resizes.

    Example:
        maker = PixelMaker(processor.image_processor, VideoFrames(processor, VideoSettings()))
        cache = PixelCache(maker, pixel_limits())
        cache.load(ImageRef("/data/scene.png"))
    """

    def __init__(self, maker: PixelMaker, limits: PixelLimits):
        """Start with nothing in the cache.

        Args:
            maker: Decodes and resizes.
            limits: Most bytes to keep, and threads that prepare pixels.
        """
        self.maker = maker
        self._ahead = Ahead[object, Pixels](limits.bytes_ahead, limits.threads)
        self._max_bytes = limits.max_bytes - (limits.bytes_ahead if limits.threads else 0)
        self._bytes = 0
        self._kept: OrderedDict[object, Pixels] = OrderedDict()
        self._hashes = FileHashes()

    @property
    def nbytes(self) -> int:
        """Bytes of pixels that are in the cache or prepared now."""
        return self._bytes + self._ahead.nbytes

    def prepare(self, images: Iterable[tuple[ImageRef, int]], videos: Iterable[tuple[VideoRef, int]]) -> None:
        """Have pixels made in threads that will be loaded soon, in this order.

        What goes wrong with one of them is raised when it is loaded.

        Args:
            images: Images, each with its number of placeholder tokens.
            videos: Videos likewise.
        """
        wanted = []
        for image, tokens in images:
            version = file_version(image.path)
            if (image.sha256 or self._hashes.get(version)) not in self._kept:
                make = functools.partial(self.maker.image, image.path)
                wanted.append((version, self.maker.nbytes(tokens), make))
        for video, tokens in videos:
            with contextlib.suppress(VideoError):  # of files that cannot be listed; `load_video` says so
                version = version_of(video)
                if (self._hashes.get(version), part_of(video)) not in self._kept:
                    make = functools.partial(self.maker.video, video)
                    wanted.append(((version, part_of(video)), self.maker.video_nbytes(tokens), make))
        self._ahead.plan(wanted)

    def load(self, ref: ImageRef) -> Pixels:
        """Decode, check and pre-process an image, unless it is in the cache or has been prepared.

        Raises:
            ImageChangedError: If the reference has a hash and the file's pixels have another.
            ImageError: If the file cannot be read as an image.
        """
        version = file_version(ref.path)
        made = self._ahead.take(version)
        expected = self._hashes.expected(ref, ref.path, version)
        sha256 = expected or self._hashes.get(version)
        if sha256 not in self._kept:
            made = made or self.maker.image(ref.path)
            self._hashes.note(version, made.sha256)
            check_unchanged(ref.path, made.sha256, expected)
            sha256 = made.sha256
            self._keep(sha256, made)
        self._kept.move_to_end(sha256)
        return self._kept[sha256]

    def load_video(self, ref: VideoRef) -> Pixels:
        """Sample, decode, check and pre-process a video, unless it is in the cache or has been prepared.

        Raises:
            ImageChangedError: If the reference has a hash and the files have another.
            VideoError: If the video cannot be read.
        """
        version = version_of(ref)
        made = self._ahead.take((version, part_of(ref)))
        if made is not None:
            self._hashes.note(version, made.sha256)
        key = (self.hash_video(ref), part_of(ref))
        if key not in self._kept:
            self._keep(key, made or self.maker.video(ref, key[0]))
        self._kept.move_to_end(key)
        return self._kept[key]

    def hash_video(self, ref: VideoRef) -> str:
        """Compute the hash of a video's files; they are read once, unless they change.

        Raises:
            ImageChangedError: If the reference has a hash and the files have another.
            VideoError: If a file cannot be read.
        """
        version = version_of(ref)
        expected = self._hashes.expected(ref, ref.paths[0], version)
        sha256 = self._hashes.get(version)
        if not sha256:
            sha256 = video_hash(ref)
            self._hashes.note(version, sha256)
        check_unchanged(ref.paths[0], sha256, expected)
        return sha256

    def patches(self, pixels: Pixels) -> torch.Tensor:
        """Return the patches of loaded pixels; see `PixelMaker.patches`."""
        return self.maker.patches(pixels)

    def size(self, ref: ImageRef) -> tuple[ImageRef, int]:
        """Return an image with its hash, and its number of patches; the pixels are loaded for this."""
        pixels = self.load(ref)
        return ImageRef(ref.path, pixels.sha256), int(pixels.grid_thw.prod())

    def known_video(self, ref: VideoRef) -> VideoRef:
        """Return a video with its hash, for which its files are read."""
        return with_hash(ref, self.hash_video(ref))

    def _keep(self, key: object, pixels: Pixels) -> None:
        """Put pixels into the cache, and drop what was not used for longest."""
        replaced = self._kept.pop(key, None)
        self._kept[key] = pixels
        self._bytes += pixels.values.nbytes - (replaced.values.nbytes if replaced else 0)
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.values.nbytes


class HeaderSizes:
    """Sizes of images and videos from their headers, by which a dialogue is rendered without any pixels.

    Args:
        maker: Tells how images are resized.
    """

    def __init__(self, maker: PixelMaker):
        self._maker = maker

    def size(self, ref: ImageRef) -> tuple[ImageRef, int]:
        """Return an image, whose hash stays unknown if it is, and its number of patches.

        Raises:
            ImageError: If the image cannot be read.
        """
        version = file_version(ref.path)
        # It does not matter whether the image is to be turned by 90°: the number of patches is the same.
        width, height = image_size(ref.path)
        return MeasuredImage(ref.path, ref.sha256, version), self._maker.num_patches(width, height)

    def known_video(self, ref: VideoRef) -> VideoRef:
        """Return a video, whose hash stays unknown if it is; its files are not read."""
        return MeasuredVideo(ref.paths, ref.sha256, *part_of(ref), version=version_of(ref))


def check_unchanged(path: str, found: str, expected: str) -> None:
    """Refuse a file whose hash is not the expected one; an empty one is not compared."""
    if expected and found != expected:
        raise ImageChangedError(
            f"{path}: the content has hash {found[:12]}…, not {expected[:12]}… as when it was first seen;"
            " restore the file, or start anew with the changed one"
        )


def part_of(ref: VideoRef) -> tuple[float | None, float | None, float, float | None]:
    """Return what decides, besides its files, how a video is shown."""
    return (ref.fps, ref.frame_rate, ref.start, ref.end)


def file_version(*paths: str) -> Version:
    """Return the paths and times of last change of files, by which rewritten ones are noticed."""
    return tuple((path, Path(path).stat().st_mtime_ns if Path(path).is_file() else 0) for path in paths)


def with_hash(ref: VideoRef, sha256: str) -> VideoRef:
    """Return a video with the hash of its files."""
    return VideoRef(ref.paths, sha256, *part_of(ref))


def version_of(ref: ImageRef | VideoRef) -> Version:
    """Return the version of the files of an image or video; raises VideoError if these cannot be listed."""
    return file_version(ref.path) if isinstance(ref, ImageRef) else file_version(*video_files(ref))
