"""Does the model look as often as the question needs?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from posttrain.types import RewardInput, Score, ToolCall
from rewards.builtin.grounding import iou_and_giou
from rewards.reading.units import has_content
from rewards.sdk import reward

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
_MARKUP = re.compile(r"</?answer>|\\(?:boxed|fbox|text)\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Look:
    """What a call shows.

    Attributes:
        what: The tool and the image, or all arguments where there is no region.
        corners: The region's corners, or None.
        pixels: Hashes of the images that came back, () where they are not known.
    """

    what: object
    corners: tuple[float, ...] | None
    pixels: tuple[str, ...]

    def shows_as(self, other: "_Look") -> bool:
        """Check whether both show the same."""
        if self.pixels and self.pixels == other.pixels:
            return True
        if self.what != other.what or (self.corners is None) != (other.corners is None):
            return False
        if self.corners is None or other.corners is None:
            return True
        ours, theirs = np.array([self.corners]), np.array([other.corners])
        if np.abs(ours - theirs).max() <= SAME_CORNERS:
            return True
        both_areas = all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in (self.corners, other.corners))
        return both_areas and bool(iou_and_giou(ours, theirs)[0][0, 0] >= SAME_IOU)


@reward("tool_calls")
def tool_calls(x: RewardInput, target: int | None = None) -> Score | None:
    """Score how close the number of useful tool calls comes to the sample's target; more does not pay.

    Formula, with n the calls that returned an image, u the different looks among them and t the target:
    max(0, (min(u, t) − max(0, n − t)) / t) for t ≥ 1, and [n = 0] for t = 0. Two calls of a tool are one
    look if they show the same region of one image (IoU ≥ 0.9, or corners at most 2 units apart), whatever
    else they say, or if the same pixels came back; calls without a region if their arguments are equal,
    labels and the spelling of numbers aside. An episode without an answer scores 0, and punctuation is
    none. Calls are counted by the images that came back, so writing calls that fail earns nothing, and each
    call beyond the target, or repeated, costs as much as a missing one.

    Range: [0, 1]. Source: Qwen3-VL report, tool rewards, "tool calling": calls against a target estimated
    offline; the report gives no formula (assumed).

    Args:
        x: `columns["target_tool_calls"]` is the target, where present.
        target: The target of samples without that column. With neither, this does not apply.

    Raises:
        ValueError: If the target is not a whole number from 0 up.
    """
    wanted = x.columns.get("target_tool_calls", target)
    if wanted is None:
        return None
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 0:
        raise ValueError(f"target_tool_calls is {wanted!r}; it must be a whole number from 0 up")
    calls = [call for call in x.tool_calls if call.images]
    looks = _different(calls, _pixels(x, calls))
    n, useful = len(calls), len(looks)
    note = f"{n} calls returned an image ({useful} different), target {wanted}"
    if not has_content(_MARKUP.sub("", x.answer)):
        return Score(0.0, note=f"no answer; {note}")
    if wanted == 0:
        return Score(float(n == 0), note=note)
    return Score(max(0.0, (min(useful, wanted) - max(0, n - wanted)) / wanted), note=note)


def _different(calls: list[ToolCall], pixels: list[tuple[str, ...]]) -> list[_Look]:
    """Return the looks that show something which none before them showed."""
    looks: list[_Look] = []
    for call, hashes in zip(calls, pixels, strict=True):
        look = _look(call, hashes)
        if not any(look.shows_as(other) for other in looks):
            looks.append(look)
    return looks


def _pixels(x: RewardInput, calls: list[ToolCall]) -> list[tuple[str, ...]]:
    """Return the hashes of the images of each call; empty ones where images and calls do not add up."""
    images = [image for message in x.response if message.role != "assistant" for image in message.images]
    if len(images) != sum(call.images for call in calls) or not all(image.sha256 for image in images):
        return [()] * len(calls)
    hashes = iter([image.sha256 for image in images])
    return [tuple(next(hashes) for _ in range(call.images)) for call in calls]


def _look(call: ToolCall, pixels: tuple[str, ...]) -> _Look:
    arguments = {key.strip().casefold(): value for key, value in call.arguments.items()}
    name, corners = call.name.strip().casefold(), _corners(arguments)
    if corners is None:
        said = sorted((key, _plain(value)) for key, value in arguments.items() if key not in _WORDING)
        return _Look((name, repr(said)), None, pixels)
    image = next((_plain(arguments[key]) for key in _IMAGES if key in arguments), 0.0)
    x1, y1, x2, y2 = corners
    region = (max(0.0, min(x1, x2)), max(0.0, min(y1, y2)), max(x1, x2), max(y1, y2))
    return _Look((name, repr(image)), region, pixels)


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
