"""The published zoom tool: look at a part of an image at the resolution of its file."""

import math
import threading
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

from PIL import Image

from posttrain.media.images import MAX_ASPECT_RATIO, ImageError, check_size, open_image
from posttrain.types import Box, Frame, ImageRef, ToolSpec
from tools_env.sdk import Arguments, ToolError, ToolResult

#: Most pixels of decoded images that a tool holds, at 3 bytes each, beside the image in use.
MAX_KEPT_PIXELS = 1 << 24

#: What the published tool is said to do, and its arguments, word for word (Qwen-Agent, where Qwen3-VL's is).
_PUBLISHED = (
    "Zoom in on a specific region of an image by cropping it based on a bounding box (bbox) and an optional "
    "object label"
)
_BOX = (
    "The bounding box of the region to zoom in, as [x1, y1, x2, y2], where (x1, y1) is the top-left corner "
    "and (x2, y2) is the bottom-right corner"
)
_LABEL = "The name or label of the object in the specified bounding box"
_IMAGE = "The index of the zoomed-in image (starting from 0)"

#: How coordinates in a frame are described to the model.
FRAME_TEXTS: dict[Frame, str] = {
    "norm_1000": "on a scale of 0 to 1000 over the image's width and height",
    "pixel_original": "in pixels of the image",
}


class ImageZoomIn:
    """Crop a box from the original file of any image of the dialogue, earlier crops included.

    The crop keeps the file's own resolution; the model's processor resizes it as it does every image.
    Boxes that hang over an edge are cut at it, and small ones grow around their centre, so that the
    processor has something to look at.

    What is announced is word for word what Qwen3-VL was trained with, as far as that is published (report,
    appendix, and Qwen-Agent's tool of the same name); in pixels, it says so. The published tool counts
    `img_idx` from 0 over all images of the dialogue in their order, crops that it returned included, and so
    does this one; the published one counts a file that is shown twice once, this one as often as it is shown.

    Example:
        ImageZoomIn()({"bbox_2d": [100, 100, 300, 300], "label": "cup", "img_idx": 0}, [ImageRef("/a.png")])
    """

    def __init__(self, frame: Frame = "norm_1000", min_side: int = 32):
        """Choose the coordinates' frame.

        Args:
            frame: `norm_1000` (Qwen2-VL and Qwen3-VL) or `pixel_original`.
            min_side: Least width and height of a crop, in pixels of the file.
        """
        if frame not in FRAME_TEXTS:
            raise ValueError(f"frame {frame!r} is none of {', '.join(FRAME_TEXTS)}")
        if min_side < 1:
            raise ValueError(f"min_side must be at least 1, got {min_side}")
        self._frame: Frame = frame
        self._min_side = min_side
        self._decoded = _DecodedImages()
        box = _BOX if frame == "norm_1000" else f"{_BOX}, {FRAME_TEXTS[frame]}"
        numbers = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
        self.spec = ToolSpec(
            name="image_zoom_in_tool",
            description=_PUBLISHED,
            parameters={
                "type": "object",
                "properties": {
                    "bbox_2d": numbers | {"description": box},
                    "label": {"type": "string", "description": _LABEL},
                    "img_idx": {"type": "number", "description": _IMAGE},
                },
                "required": ["bbox_2d", "label", "img_idx"],
            },
        )

    def __call__(self, arguments: Arguments, images: list[ImageRef]) -> ToolResult:
        """Crop the region; return it with the index under which it can be zoomed into again.

        Raises:
            ToolError: If there is no such image, or the box is not inside it.
        """
        try:
            image = self._decoded.open(images[self._index(arguments["img_idx"], len(images))].path)
        except ImageError as error:
            raise ToolError(f"image {arguments['img_idx']} cannot be opened") from error
        crop = image.crop(self._region(arguments["bbox_2d"], image.size))
        return ToolResult(f"Image {len(images)}", (crop,))

    def _index(self, value: float, count: int) -> int:
        if value not in range(count):
            raise ToolError(f"img_idx {value} does not exist; there are {count} images, from 0")
        return int(value)

    def _region(self, corners: list[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the part of the file to show: whole pixels, clamped, and at least the minimum side."""
        x1, y1, x2, y2 = corners
        if not all(math.isfinite(corner) for corner in corners):
            raise ToolError(f"bbox_2d {corners} has a corner that is not a finite number")
        if x1 >= x2 or y1 >= y2:
            raise ToolError(f"bbox_2d {corners} is empty or reversed; x1 < x2 and y1 < y2 are needed")
        box = Box(x1, y1, x2, y2, self._frame).to("pixel_original", original=size)
        left, right = max(0.0, box.x1), min(float(size[0]), box.x2)
        top, bottom = max(0.0, box.y1), min(float(size[1]), box.y2)
        if left >= right or top >= bottom:
            raise ToolError(f"bbox_2d {corners} lies outside the image; it is {FRAME_TEXTS[self._frame]}")
        # A strip that no processor takes grows as well.
        least = max(self._min_side, math.ceil(max(right - left, bottom - top) / MAX_ASPECT_RATIO) + 1)
        left, right = _grow(left, right, least, size[0])
        top, bottom = _grow(top, bottom, least, size[1])
        region = (left, top, right, bottom)
        try:
            check_size((right - left, bottom - top))
        except ImageError as error:
            raise ToolError(f"bbox_2d {corners} is too thin to be shown: {error}") from None
        return region


def _grow(start: float, end: float, least: int, limit: int) -> tuple[int, int]:
    """Round a span outwards to whole pixels, widen it to `least` around its centre, within 0…limit."""
    first, last = math.floor(start), math.ceil(end)
    if last - first < least:
        first = round((start + end) / 2 - least / 2)
        last = first + least
        shift = max(0, -first) - max(0, last - limit)
        first, last = first + shift, last + shift
    return max(0, first), min(limit, last)


class _DecodedImages:
    """The images that were opened last, each decoded once: the episodes of a group look into the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int, int], Future[Image.Image]] = OrderedDict()

    def open(self, path: str) -> Image.Image:
        """Decode a file; where another thread is at it, wait for that one.

        Raises:
            ImageError: If it cannot be used.
        """
        file = _state_of(path)
        with self._lock:
            found = self._kept.get(file)
            decoding = found or Future()
            self._kept[file] = decoding
            self._kept.move_to_end(file)
        if found is None:
            self._decode(file, decoding)
        return decoding.result()

    def _decode(self, file: tuple[str, int, int], decoding: "Future[Image.Image]") -> None:
        """Decode a file, and drop the oldest of those that are too many."""
        try:
            decoding.set_result(open_image(file[0]))
        except Exception as error:
            decoding.set_exception(error)
        with self._lock:
            if decoding.exception() is not None:
                self._kept.pop(file, None)
            ready = [(each, future.result()) for each, future in self._kept.items() if future.done()]
            pixels = sum(math.prod(image.size) for _, image in ready)
            for each, image in ready:
                if pixels <= MAX_KEPT_PIXELS:
                    break
                pixels -= math.prod(image.size)
                del self._kept[each]


def _state_of(path: str) -> tuple[str, int, int]:
    """Return a file's path, size and time of last change, by which a rewritten one is noticed."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise ImageError(f"image {path[-200:]!r} cannot be used: {error.strerror}") from error
    return path, found.st_size, found.st_mtime_ns
