"""The images and videos that rows show: checked and hashed once, and seen to have changed by their stamps.

A stamp is a file's size and the time of its last change. A file of another stamp is compared by its contents:
what was only copied or touched is still the same.
"""

import dataclasses
import hashlib
import json
import os
import time
from typing import TypeAlias

from posttrain.media.images import ImageError, check_image, open_regular
from posttrain.media.videos import VideoError, check_video, video_files, video_hash
from posttrain.types import Sample, VideoRef

#: An image by its absolute path, or a video.
Medium: TypeAlias = str | VideoRef
#: Size in bytes and time of the last change in ns, or `UNSETTLED`. Of several files the sum of their sizes,
#: and a number that depends on every file's name, size and time.
Stamp: TypeAlias = tuple[int, int]

#: In place of the time of a file that changed a moment ago: it may change again within the same time.
UNSETTLED = -1
#: How long a file's time may stay the same although it changes. File systems that count whole seconds (FAT
#: even two) are known by times without a fraction; others count at least by the ticks of the system's clock.
_TICK_NS, _COARSE_TICK_NS, _SECOND_NS = 50_000_000, 2_000_000_000, 1_000_000_000


def media_of(sample: Sample) -> list[Medium]:
    """Return all images of a sample, then all its videos, in the order in which its turns show them."""
    turns = (*sample.messages, *sample.chosen, *sample.rejected)
    images: list[Medium] = [image.path for message in turns for image in message.images]
    return images + [video for message in turns for video in message.videos]


def check_medium(medium: Medium) -> bytes:
    """Check that an image or video can be used, and return the SHA-256 of its contents.

    Raises:
        ImageError: If the image cannot be used.
        VideoError: If the video cannot be used.
    """
    if isinstance(medium, VideoRef):
        check_video(medium)
    else:
        check_image(medium)
    return content_hash(medium)


def content_hash(medium: Medium) -> bytes:
    """Return the SHA-256 of an image's or video's files.

    Raises:
        ImageError: If the image cannot be read.
        VideoError: If the video cannot be read.
    """
    if isinstance(medium, VideoRef):
        return bytes.fromhex(video_hash(medium))
    try:
        with open_regular(medium) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ImageError(f"image {medium[-200:]!r} cannot be used: {error.strerror}") from error


def stamp_of(medium: Medium) -> Stamp | None:
    """Return an image's or video's stamp, or None if its files cannot be found."""
    try:
        if not isinstance(medium, VideoRef):
            return _settled(os.stat(medium))  # noqa: PTH116 (twice as fast as by Path, and there are many)
        files = video_files(medium)
        stamps = [_settled(os.stat(file)) for file in files]  # noqa: PTH116
    except (OSError, VideoError):
        return None
    if len(stamps) == 1:
        return stamps[0]
    size = sum(size for size, _ in stamps)
    if any(changed == UNSETTLED for _, changed in stamps):
        return size, UNSETTLED
    digest = hashlib.blake2b(json.dumps([files, stamps]).encode(), digest_size=8).digest()
    return size, int.from_bytes(digest) >> 1


def is_unchanged(medium: Medium, known: Stamp) -> bool:
    """Tell whether an image or video still has a stamp; an unsettled one tells nothing."""
    if isinstance(medium, VideoRef):
        return known[1] != UNSETTLED and stamp_of(medium) == known
    try:
        status = os.stat(medium)  # noqa: PTH116
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == known


def unsettled_ns(mtime_ns: int) -> int:
    """Return for how many ns a file with this time of its last change may still change unseen; 0 if not."""
    tick = _TICK_NS if mtime_ns % _SECOND_NS else _COARSE_TICK_NS
    return max(0, mtime_ns + tick - time.time_ns())


def encode_medium(medium: Medium) -> bytes:
    """Write a medium as bytes: an image as its path, a video as a JSON object."""
    if isinstance(medium, VideoRef):
        return json.dumps(dataclasses.asdict(medium)).encode()
    return os.fsencode(medium)


def decode_medium(encoded: bytes) -> Medium:
    """Read what `encode_medium` wrote; an absolute path never begins as a JSON object does."""
    if not encoded.startswith(b"{"):
        return os.fsdecode(encoded)
    fields = json.loads(encoded)
    return VideoRef(**fields | {"paths": tuple(fields["paths"])})


def described(medium: Medium) -> str:
    """Return a medium as error messages name it."""
    if isinstance(medium, VideoRef):
        return f"video {medium.paths[0][-200:]!r}"
    return f"image {medium[-200:]!r}"


def _settled(status: os.stat_result) -> Stamp:
    return status.st_size, UNSETTLED if unsettled_ns(status.st_mtime_ns) else status.st_mtime_ns
