"""Read videos, from video files or series of pictures, as RGB frames.

Frames are decoded one at a time, and not beyond the last one asked for. A file must have the container format
that its name says: FFmpeg looks at the content alone, and some contents (playlists) make it open other files.
"""

import contextlib
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# OpenCV reads these when it is loaded and opens its first video. Damaged files raise errors here, so it need
# not write to stderr as well.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np

from posttrain.media.images import check_image, check_size, open_image, open_regular
from posttrain.media.links import follow
from posttrain.media.suffixes import FRAME_SUFFIXES, VIDEO_SUFFIXES
from posttrain.types import VideoRef

#: Most frames of a video, an hour at 25 frames per second: to reach a frame, all before it must be decoded.
MAX_FRAMES = 90_000
#: Most pixels of a frame: 4096×4096.
MAX_FRAME_PIXELS = 1 << 24
#: Fewest frames that are shown, because the vision towers take frames in pairs.
MIN_FRAMES = 2
#: Most frames per second that a file may claim.
MAX_FPS = 1000.0
#: Frames per second of a series of pictures without a frame rate, as in Qwen's own reader.
FRAME_RATE = 2.0
#: For each suffix, the number of bytes to skip, and what files of this kind may have after them.
_CONTAINERS: dict[str, tuple[int, tuple[bytes, ...]]] = {
    ".mp4": (4, (b"ftyp",)),
    ".m4v": (4, (b"ftyp",)),
    ".mov": (4, (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    ".mkv": (0, (b"\x1a\x45\xdf\xa3",)),
    ".webm": (0, (b"\x1a\x45\xdf\xa3",)),
    ".avi": (0, (b"RIFF",)),
}
assert tuple(_CONTAINERS) == VIDEO_SUFFIXES
#: Containers that say how long they last, sound included, but not how many frames they have.
_TELLS_DURATION = (".mkv", ".webm")


class VideoError(ValueError):
    """A video cannot be used; the message names it and the reason."""


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before its frames are decoded.

    Attributes:
        frames: Numbers of the frames of the part that is shown, counted from the beginning of the file.
        fps: Frames per second.
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
    """

    frames: range
    fps: float
    width: int
    height: int


def video_info(ref: VideoRef) -> VideoInfo:
    """Read a video's header, or that of the first of its pictures.

    Raises:
        VideoError: If the video cannot be used, or fewer than two of its frames are to be shown.
    """
    with _explained(ref):
        files = _frame_files(ref)
        if files is None:
            with _capture(ref) as capture:
                count, fps = _count(capture), float(capture.get(cv2.CAP_PROP_FPS))
                size = _size(capture)
        else:
            count, fps = len(files), ref.frame_rate or FRAME_RATE
            with open_image(files[0], MAX_FRAME_PIXELS) as image:
                size = image.size
        if not 0 < fps <= MAX_FPS:
            raise VideoError(f"it tells of {fps:g} frames a second")
        if count > MAX_FRAMES:
            raise VideoError(
                f"it has {count:,} frames, more than the {MAX_FRAMES:,} allowed; extract them at a lower rate"
            )
        check_size(size, MAX_FRAME_PIXELS)
        first = math.ceil(ref.start * fps - 1e-6)
        stop = count if ref.end is None else min(count, math.floor(ref.end * fps + 1e-6) + 1)
        if stop - first < MIN_FRAMES:
            raise VideoError(
                f"it shows {max(0, stop - first)} frames, of {count} in total, and takes {MIN_FRAMES}"
            )
        return VideoInfo(range(first, stop), fps, *size)


def read_frames(ref: VideoRef, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Decode frames, one after another.

    Args:
        ref: The video; its `start` and `end` are ignored.
        numbers: Numbers of the frames, in ascending order.

    Yields:
        [height, width, 3] RGB bytes; all frames have the same size.

    Raises:
        VideoError: If the video ends before the last of them, or a frame cannot be read.
    """
    size: tuple[int, ...] | None = None
    with _explained(ref):
        files = _frame_files(ref)
        frames = _decoded(ref, numbers) if files is None else _pictures(files, numbers)
        for frame in frames:
            size = size or frame.shape
            if frame.shape != size:
                raise VideoError(
                    f"a frame is {frame.shape[1]}×{frame.shape[0]}, and others {size[1]}×{size[0]}"
                )
            yield frame


def check_video(ref: VideoRef) -> None:
    """Check that `read_frames` will succeed, at a fraction of its cost, by the first and the last frame.

    Of a series of pictures all are looked at.

    Raises:
        VideoError: If the header or one of these frames cannot be read, or pictures are of different sizes.
    """
    info = video_info(ref)
    with _explained(ref):
        files = _frame_files(ref)
        if files is not None:
            shown = [files[number] for number in info.frames]
            _check_sizes(shown, [check_image(file, MAX_FRAME_PIXELS) for file in shown])
            return
        with _capture(ref) as capture:
            if not capture.grab():
                raise VideoError("none of its frames can be decoded")
            capture.set(cv2.CAP_PROP_POS_FRAMES, max(0, info.frames[-1] - _tolerated(ref, info.fps)))
            if not capture.grab():
                raise VideoError("it breaks off before its last frame")


def video_hash(ref: VideoRef) -> str:
    """Compute the SHA-256 of a file's bytes; for a series of pictures, that of their joined hashes.

    Raises:
        VideoError: If a file cannot be read.
    """
    with _explained(ref):
        digests = []
        for path in _frame_files(ref) or ref.paths:
            with open_regular(path) as file:
                digests.append(hashlib.file_digest(file, "sha256"))
        if len(digests) == 1:
            return digests[0].hexdigest()
        return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def video_files(ref: VideoRef) -> list[str]:
    """List the files of a video: the video file, or its pictures in order.

    Raises:
        VideoError: If a folder cannot be read, has no pictures, or a link in it leads elsewhere.
    """
    with _explained(ref):
        return _frame_files(ref) or list(ref.paths)


def _frame_files(ref: VideoRef) -> list[str] | None:
    """List the pictures of a video in order; None if it is a video file."""
    path = Path(ref.paths[0])
    if len(ref.paths) > 1:
        return list(ref.paths)
    if not path.is_dir():
        return [str(path)] if path.suffix.lower() in FRAME_SUFFIXES else None
    with os.scandir(path) as entries:
        found = [entry for entry in entries if Path(entry.name).suffix.lower() in FRAME_SUFFIXES]
    if not found:
        raise VideoError(f"the folder has no {', '.join(FRAME_SUFFIXES)} files")
    ordered = sorted(found, key=lambda entry: _natural(entry.name))
    return [str(follow(Path(each), FRAME_SUFFIXES)) if each.is_symlink() else each.path for each in ordered]


def _check_sizes(files: Sequence[str], sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse pictures of different sizes, naming one that is not as most of them are."""
    [(usual, _), *others] = Counter(sizes).most_common()
    if others:
        place = next(place for place, size in enumerate(sizes) if size != usual)
        path, (width, height) = Path(files[place]), sizes[place]
        raise VideoError(
            f"frame {path.parent.name}/{path.name} is {width}×{height}, the others {usual[0]}×{usual[1]};"
            " bring all frames to one size"
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """Make a key that sorts names with numbers as people do: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _pictures(files: Sequence[str], numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Decode the pictures with these numbers."""
    for number in numbers:
        yield np.array(open_image(files[number], MAX_FRAME_PIXELS))


def _decoded(ref: VideoRef, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Decode frames of a video file, going through it from the beginning, because seeking may be inexact."""
    with _capture(ref) as capture:
        tolerated = _tolerated(ref, float(capture.get(cv2.CAP_PROP_FPS)))
        at, frame = -1, None
        for number in numbers:
            while at < number and capture.grab():
                at, frame = at + 1, None
            if at < max(0, number - tolerated):
                raise VideoError(f"it breaks off after {at + 1} of its {_count(capture)} frames")
            if frame is None:
                decoded, raw = capture.retrieve()
                if not decoded:
                    raise VideoError(f"frame {at} cannot be decoded")
                frame = cv2.cvtColor(raw, cv2.COLOR_BGR2RGB)
            yield frame


@contextlib.contextmanager
def _capture(ref: VideoRef) -> Iterator[cv2.VideoCapture]:
    """Open a video file, after checking that its container format is the one that its name says."""
    path = Path(ref.paths[0]).absolute()
    if ref.frame_rate is not None:
        raise VideoError("a video file tells its frame rate itself; remove frame_rate")
    if path.suffix.lower() not in _CONTAINERS:
        raise VideoError(f"it must end in one of {', '.join(VIDEO_SUFFIXES)}, or be a folder of frames")
    skipped, beginnings = _CONTAINERS[path.suffix.lower()]
    with open_regular(path) as file:
        if not file.read(16)[skipped:].startswith(beginnings):
            raise VideoError(f"its content is not that of a {path.suffix} file")
    # One thread, because decoding must not take the cores of training.
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise VideoError("it is damaged, or of a codec that is not known")
        yield capture
    finally:
        capture.release()


def _tolerated(ref: VideoRef, fps: float) -> int:
    """Return how many frames may be missing at a file's end; its last frame is shown in their place."""
    return math.ceil(fps) if Path(ref.paths[0]).suffix.lower() in _TELLS_DURATION else 1


def _count(capture: cv2.VideoCapture) -> int:
    """Return the number of frames that a file claims to have."""
    return int(capture.get(cv2.CAP_PROP_FRAME_COUNT))


def _size(capture: cv2.VideoCapture) -> tuple[int, int]:
    """Return the (width, height) of a file's frames."""
    return int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))


@contextlib.contextmanager
def _explained(ref: VideoRef) -> Iterator[None]:
    """Turn every failure inside the context into a `VideoError` that names the video."""
    try:
        yield
    except Exception as error:
        # Decoders of damaged files raise whatever they like.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise VideoError(f"video {ref.paths[0][-200:]!r} cannot be used: {reason}") from error
