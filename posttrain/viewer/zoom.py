"""The boxes that a model zoomed into, as the report draws them.

A recorded call says what was called and with which arguments, but not which part of which image that means.
This is the one place of the viewer that knows the arguments of a tool: those of `image_zoom_in`, which Qwen's
own zoom tool has as well. `img_idx` is the number of the image in the dialogue, from 0, and `bbox_2d` the
corners x1, y1, x2, y2 of the box in thousandths of width and height. Calls of other tools draw nothing.
"""

from dataclasses import dataclass

from posttrain.run.json_fields import number
from posttrain.types import ToolCall

IMAGE_INDEX, CORNERS = "img_idx", "bbox_2d"
#: Largest coordinate.
SIDE = 1000.0


@dataclass(frozen=True)
class ZoomBox:
    """A box to draw on an image, in thousandths of its width and height.

    Attributes:
        x, y, width, height: Clipped to the image.
        number: Of the call within the episode, from 1.
        ok: Whether the tool took it.
    """

    x: float
    y: float
    width: float
    height: float
    number: int
    ok: bool


def zoom_box(call: ToolCall, order: int) -> tuple[int, ZoomBox] | None:
    """Return the number of the image that a call zoomed into, from 0, and the box; None for any other call.

    Args:
        call: As recorded.
        order: Number of the call within the episode, from 1.
    """
    index, corners = number(call.arguments.get(IMAGE_INDEX)), _corners(call.arguments.get(CORNERS))
    if index is None or not index.is_integer() or corners is None:
        return None
    x1, y1, x2, y2 = (min(SIDE, max(0.0, corner)) for corner in corners)
    if x1 >= x2 or y1 >= y2:
        return None
    return int(index), ZoomBox(x1, y1, x2 - x1, y2 - y1, order, call.ok)


def _corners(value: object) -> list[float] | None:
    if not isinstance(value, list):
        return None
    corners = [corner for item in value if (corner := number(item)) is not None]
    return corners if len(corners) == len(value) == 4 else None
