"""Images and frames of a page: read once, scaled down, re-encoded and embedded.

A file's own bytes never reach the page. What is embedded are pixels that were decoded, so a path in a
rollout that leads to something else than an image yields a placeholder.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from posttrain.media.images import ImageError, open_image
from posttrain.media.videos import VideoError, read_frames
from posttrain.types import VideoRef

MAX_SIDE = 512
#: Of a video's frame, of which there are many.
MAX_FRAME_SIDE = 160
#: Of all the images of a page together, so that it stays quick to open and to send.
MAX_TOTAL_BYTES = 24 << 20


@dataclass(frozen=True)
class Picture:
    """An embedded image.

    Attributes:
        uri: A `data:` URI, or "" where the image can't be shown.
        width, height: Pixels of the original file, 0 where it can't be shown.
        problem: Why it can't be shown.
    """

    uri: str
    width: int = 0
    height: int = 0
    problem: str = ""


class PictureBook:
    """The images that a page embeds; each file is read once."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._pictures: dict[str, Picture] = {}
        self._budget = MAX_TOTAL_BYTES

    def picture(self, path: str) -> Picture:
        """Return the image at a path, which may be relative to the run's directory."""
        if path not in self._pictures:
            self._pictures[path] = self._embed(path)
        return self._pictures[path]

    def frames(self, ref: VideoRef, numbers: Sequence[int]) -> list[Picture]:
        """Return frames of a video, in ascending order."""
        pictures: list[Picture] = []
        try:
            for frame in read_frames(ref, numbers):
                pictures.append(self._shrunk(Image.fromarray(frame), MAX_FRAME_SIDE))
        except VideoError as error:
            pictures += [Picture("", problem=str(error))] * (len(numbers) - len(pictures))
        return pictures

    def _embed(self, path: str) -> Picture:
        try:
            return self._shrunk(open_image(self._directory / path), MAX_SIDE)
        except ImageError as error:
            return Picture("", problem=str(error))

    def _shrunk(self, image: Image.Image, side: int) -> Picture:
        if self._budget <= 0:
            return Picture("", problem="left out: the page has reached its limit of images")
        width, height = image.size
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        uri = _data_uri(image)
        self._budget -= len(uri)
        return Picture(uri, width, height)


def _data_uri(image: Image.Image) -> str:
    """Encode an image as PNG or JPEG, whichever is smaller: drawings and photographs differ in which."""
    encodings: list[tuple[int, str, bytes]] = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        encodings.append((buffer.tell(), kind, buffer.getvalue()))
    _, kind, data = min(encodings)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
