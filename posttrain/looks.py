"""What an episode's tool calls showed: the same look twice is one look.

Beside its neighbours it imports only the standard library, so that plugins can use it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.types import Message, ToolCall

#: Looks that overlap this much, or whose corners are this near, show the same (assumed).
SAME_IOU, SAME_CORNERS = 0.9, 2.0
_REGIONS = ("bbox_2d", "bbox", "box", "bounding_box", "region", "roi", "area", "rect", "crop", "coordinates")
_CORNERS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)
_IMAGES = ("img_idx", "image_idx", "image_index", "img_index", "image_id", "index", "image", "img")
#: Arguments that only describe a look.
_WORDING = {
    *("label", "description", "reason", "thought", "thinking", "note", "purpose", "comment", "explanation"),
    *("caption", "goal", "title", "name", "id"),
}
_NUMBER = re.compile(r"[-+]?(?:\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})")


@dataclass(frozen=True)
class Look:
    """What a call shows that returned an image.

    Attributes:
        what: The tool and the image, or all arguments where there is no region.
        corners: The region's corners, or None.
        pixels: Hashes of the images that came back, () where they are not known.
    """

    what: object
    corners: tuple[float, ...] | None
    pixels: tuple[str, ...]

    def shows_as(self, other: "Look") -> bool:
        """Check whether both show the same."""
        if self.pixels and self.pixels == other.pixels:
            return True
        if self.what != other.what or (self.corners is None) != (other.corners is None):
            return False
        if self.corners is None or other.corners is None:
            return True
        pairs = zip(self.corners, other.corners, strict=True)
        return all(abs(one - another) <= SAME_CORNERS for one, another in pairs) or (
            _overlap(self.corners, other.corners) >= SAME_IOU
        )


def different_looks(calls: Sequence[ToolCall], response: Sequence[Message]) -> list[Look]:
    """Return the looks of an episode that show something which none before them showed.

    Calls that failed or returned no image show nothing. Two calls of a tool are one look if they show the
    same region of one image (IoU ≥ 0.9, or corners at most 2 units apart), whatever else they say, or if the
    same pixels came back; calls without a region if their arguments are equal, labels and the spelling of
    numbers aside.

    Args:
        calls: Every call of the episode, in order.
        response: Its turns after the prompt, with the images that came back.
    """
    shown = [call for call in calls if call.images]
    looks: list[Look] = []
    for call, hashes in zip(shown, _pixels(response, shown), strict=True):
        look = _look(call, hashes)
        if not any(look.shows_as(other) for other in looks):
            looks.append(look)
    return looks


def _pixels(response: Sequence[Message], calls: Sequence[ToolCall]) -> list[tuple[str, ...]]:
    """Return the hashes of the images of each call; empty ones where images and calls do not add up."""
    images = [image for message in response if message.role != "assistant" for image in message.images]
    if len(images) != sum(call.images for call in calls) or not all(image.sha256 for image in images):
        return [()] * len(calls)
    hashes = iter([image.sha256 for image in images])
    return [tuple(next(hashes) for _ in range(call.images)) for call in calls]


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Compute the intersection over union of two regions; 0 where one is empty."""
    if not all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in (one, other)):
        return 0.0
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    shared = max(0.0, width) * max(0.0, height)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    return shared / (sum(areas) - shared)


def _look(call: ToolCall, pixels: tuple[str, ...]) -> Look:
    arguments = {key.strip().casefold(): value for key, value in call.arguments.items()}
    name, corners = call.name.strip().casefold(), _corners(arguments)
    if corners is None:
        said = sorted((key, _plain(value)) for key, value in arguments.items() if key not in _WORDING)
        return Look((name, repr(said)), None, pixels)
    image = next((_plain(arguments[key]) for key in _IMAGES if key in arguments), 0.0)
    x1, y1, x2, y2 = corners
    region = (max(0.0, min(x1, x2)), max(0.0, min(y1, y2)), max(x1, x2), max(y1, y2))
    return Look((name, repr(image)), region, pixels)


def _corners(arguments: Mapping[str, object]) -> list[float] | None:
    """Return the four numbers that say where a call looks, however they are written."""
    named = next((value for key in _REGIONS if (value := arguments.get(key)) is not None), arguments)
    values: object = named
    if isinstance(named, Mapping):
        keys = next((keys for keys in _CORNERS if all(key in named for key in keys)), ())
        values = [named[key] for key in keys]
    if isinstance(values, str):
        values = _NUMBER.findall(values[:200])
    if isinstance(values, list | tuple) and len(values) == 2:
        values = [number for corner in values if isinstance(corner, list | tuple) for number in corner]
    if not isinstance(values, list | tuple) or len(values) != 4:
        return None
    numbers = [_plain(value) for value in values]
    return (
        [n for n in numbers if isinstance(n, float)] if all(isinstance(n, float) for n in numbers) else None
    )


def _plain(value: object) -> object:
    """Spell an argument in one way: numbers as such whatever their type, texts without case and edges."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, str):
        text = value.strip().casefold()
        return _number(text) if _NUMBER.fullmatch(text) else text
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return sorted((str(key).casefold(), repr(_plain(item))) for key, item in value.items())
    return value


def _number(value: float | str) -> float:
    """Return a number to a hundredth; one that is too large for that as infinity."""
    try:
        return round(float(value), 2) + 0.0
    except OverflowError:
        return float("inf")
