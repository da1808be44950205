"""Boxes and points: out of what a model wrote, in any family's format, and out of a ground truth.

Every box leaves here as a `posttrain.types.Box`, which carries its frame; a point is a box without extent.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from posttrain.files.strict_json import JsonError, parse_json
from posttrain.media.images import open_image
from posttrain.messages import without_thinking
from posttrain.types import Box, Frame, ImageRef, RewardInput

Kind = Literal["box", "point"]
#: A JSON object that a model wrote, of which nothing is known.
Found: TypeAlias = Mapping[str, Any]
FRAMES: tuple[Frame, ...] = get_args(Frame)

#: Coordinates beyond this are no place in any image, and their areas would lose digits.
MAX_COORDINATE = 1e6
#: A thinner box has no area to speak of.
MIN_SIDE = 1e-6
_KEYS: dict[str, Kind] = {"bbox_2d": "box", "point_2d": "point"}
_NUMBERS_OF: dict[Kind, int] = {"box": 4, "point": 2}

# Each repetition below has a bound, so that hostile text costs linear time.
_NUMBER = r"[-+]?\d{1,12}(?:\.\d{1,12})?"
_COMMA = r"\s{0,9},\s{0,9}"
_PAIR = rf"\(\s{{0,9}}({_NUMBER}){_COMMA}({_NUMBER})\s{{0,9}}\)"
_PAIRS = re.compile(rf"{_PAIR}(?:{_COMMA}{_PAIR})?")
_LIST = re.compile(
    rf"\[\s{{0,9}}({_NUMBER}){_COMMA}({_NUMBER})(?:{_COMMA}({_NUMBER}){_COMMA}({_NUMBER}))?\s{{0,9}}\]"
)
_TAGS = re.compile(
    r"<\|object_ref_start\|>([^<]{0,500})<\|object_ref_end\|>|<\|box_start\|>([^<]{0,200})<\|box_end\|>"
)
_FLAT_OBJECT = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Region:
    """A box or a point that a model wrote.

    Attributes:
        kind: What the model meant to write.
        box: Where it is; None where it is no place at all: a wrong number of coordinates, one that is not
            a finite number, corners reversed or on one line.
        label: What the model calls it, "" where it says nothing.
    """

    kind: Kind
    box: Box | None
    label: str = ""


@dataclass(frozen=True)
class Gold:
    """The objects of a ground truth.

    Attributes:
        boxes: Boxes, all in one frame.
        points: Points as boxes without extent, in the same frame.
        labels: A label for each box or point, or None where labels do not count.
    """

    boxes: list[Box]
    points: list[Box]
    labels: list[str] | None


def read_regions(text: str, frame: Frame) -> list[Region]:
    """Read every box and point in what a model wrote after its thinking, valid or not.

    Read are Qwen2-VL's `<|object_ref_start|>label<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`
    (a point has one pair), and the JSON of Qwen2.5-VL and Qwen3-VL, `{"bbox_2d": [x1, y1, x2, y2],
    "label": …}` and `{"point_2d": [x, y], …}`, at any depth, in code fences or in prose. Where there is
    none of these, bare `[x1, y1, x2, y2]`, `[x, y]`, `(x1,y1),(x2,y2)` and `(x,y)` count.

    Args:
        text: What the model wrote. Time is linear in its length, and nothing in it raises.
        frame: The frame in which the model's family writes.
    """
    text = without_thinking(text)
    return [*_tagged(text, frame), *_keyed(text, frame)] or _bare(text, frame)


def read_gold(ground_truth: object, frame: Frame) -> Gold:
    """Read the boxes or points of a ground truth.

    Forms: `{"boxes": [[x1, y1, x2, y2], …], "labels": […], "frame": "pixel_original"}` (or `"points":
    [[x, y], …]`; `labels` and `frame` may be absent), a list of boxes, a list of points, one box, or one
    point. An empty list of boxes says that the object is not there.

    Args:
        ground_truth: The sample's reference.
        frame: The frame of a ground truth that names none.

    Raises:
        ValueError: On any other form, a degenerate box, or labels that are not one for each object.
    """
    form = ground_truth if isinstance(ground_truth, dict) else _plain_form(ground_truth)
    frame = read_frame(form.get("frame", frame))
    if "boxes" not in form and "points" not in form:
        raise ValueError(f"ground_truth has the keys {sorted(form)}; it needs 'boxes' or 'points'")
    boxes = [_gold_box(numbers, "box", frame) for numbers in _list(form.get("boxes", []), "boxes")]
    points = [_gold_box(numbers, "point", frame) for numbers in _list(form.get("points", []), "points")]
    if form.get("labels") is None:
        return Gold(boxes, points, None)
    given, objects = _list(form["labels"], "labels"), len(boxes) + len(points)
    labels = [label for label in given if isinstance(label, str)]
    if not len(given) == len(labels) == objects:
        raise ValueError(f"ground_truth: labels must be {objects} texts, one for each object")
    return Gold(boxes, points, labels)


def read_frame(name: object) -> Frame:
    """Return the frame of that name, as a ground truth gives it.

    Raises:
        ValueError: If there is none.
    """
    for frame in FRAMES:
        if name == frame:
            return frame
    raise ValueError(f"ground_truth: frame {name!r} is none of {', '.join(FRAMES)}")


def in_frame(boxes: list[Box], frame: Frame, x: RewardInput) -> list[Box]:
    """Convert boxes to the frame wanted, by the sizes of the sample's image.

    The image's size is the column `image_size` ([width, height]) or else that of the first image of the
    prompt; the size after the processor's resize is the column `resized_size`.

    Raises:
        ValueError: If a size is needed and missing, or no size.
    """
    if all(box.frame == frame for box in boxes):
        return boxes
    original, resized = _column_size(x, "image_size"), _column_size(x, "resized_size")
    if original is None:
        images = [image for message in x.prompt for image in message.images]
        if not images:
            raise ValueError(
                f"boxes cannot be converted to {frame}: the sample has neither an image nor the column"
                " 'image_size' ([width, height])"
            )
        original = _image_size(images[0])
    if resized is None and "pixel_resized" in {frame, *(box.frame for box in boxes)}:
        raise ValueError(
            "boxes in pixel_resized need the column 'resized_size' ([width, height] after the processor's"
            " resize)"
        )
    return [box.to(frame, original=original, resized=resized) for box in boxes]


def _tagged(text: str, frame: Frame) -> list[Region]:
    """Read Qwen2-VL's form; a label holds for all boxes up to the next label."""
    regions, label = [], ""
    for found in _TAGS.finditer(text):
        if found[1] is not None:
            label = found[1].strip()
            continue
        pairs = _PAIRS.fullmatch(found[2].strip())
        numbers = [float(n) for n in pairs.groups() if n is not None] if pairs else []
        kind: Kind = "point" if len(numbers) == 2 else "box"
        regions.append(Region(kind, _box(numbers, kind, frame), label))
    return regions


def _keyed(text: str, frame: Frame) -> list[Region]:
    """Read the JSON form; one object may hold a list of boxes."""
    regions = []
    for found in _objects(text):
        label = found.get("label")
        label = label.strip() if isinstance(label, str) else ""
        for key, kind in _KEYS.items():
            if key not in found:
                continue
            value = found[key]
            several = isinstance(value, list) and value and all(isinstance(item, list) for item in value)
            for numbers in value if several else [value]:
                regions.append(Region(kind, _box(numbers, kind, frame), label))
    return regions


def _objects(text: str) -> Iterator[Found]:
    """Yield the JSON objects in a text that is JSON, or fenced JSON, or prose around flat objects."""
    for part in text.split("```"):
        if not any(f'"{key}"' in part for key in _KEYS):
            continue
        part = part.strip().removeprefix("json").strip()
        try:
            yield from _walk(parse_json(part))
        except JsonError:
            for flat in _FLAT_OBJECT.findall(part):
                yield from _flat_object(flat)


def _walk(value: object) -> Iterator[Found]:
    """Yield every object inside a JSON value, whose depth the strict reader has bounded."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _walk(item)


def _flat_object(text: str) -> Iterator[Found]:
    """Yield one object without inner ones; where it cannot be read, its keys without values."""
    keys = [key for key in _KEYS if f'"{key}"' in text]
    if keys:
        try:
            found = parse_json(text)
            if isinstance(found, dict):
                yield found
        except JsonError:
            yield dict.fromkeys(keys)


def _bare(text: str, frame: Frame) -> list[Region]:
    regions = []
    for pattern in (_LIST, _PAIRS):
        for found in pattern.finditer(text):
            numbers = [float(n) for n in found.groups() if n is not None]
            kind: Kind = "point" if len(numbers) == 2 else "box"
            regions.append(Region(kind, _box(numbers, kind, frame)))
    return regions


def _box(numbers: object, kind: Kind, frame: Frame) -> Box | None:
    """Return the numbers as a place, or None where they are none."""
    if not isinstance(numbers, list) or len(numbers) != _NUMBERS_OF[kind]:
        return None
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        return None
    if not all(math.isfinite(n) and abs(n) <= MAX_COORDINATE for n in numbers):
        return None
    box = Box(*map(float, numbers if kind == "box" else [*numbers, *numbers]), frame=frame)
    return box if kind == "point" or min(box.x2 - box.x1, box.y2 - box.y1) > MIN_SIDE else None


def _plain_form(ground_truth: object) -> dict[str, object]:
    """Return the object form of a list: of boxes or points, or of the numbers of one."""
    values = _list(ground_truth, "")
    if values and not isinstance(values[0], list | tuple):
        values = [values]
    points = all(isinstance(value, list | tuple) and len(value) == 2 for value in values)
    return {"points" if values and points else "boxes": values}


def _gold_box(numbers: object, kind: Kind, frame: Frame) -> Box:
    box = _box(list(numbers) if isinstance(numbers, tuple) else numbers, kind, frame)
    if box is None:
        wanted = "[x1, y1, x2, y2] with x1 < x2 and y1 < y2" if kind == "box" else "[x, y]"
        raise ValueError(f"ground_truth: {kind} {numbers!r} is not {wanted}; correct the dataset")
    return box


def _list(value: object, key: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"ground_truth{key and ': ' + key} is {value!r}, not a list; correct the dataset")
    return list(value)


def _column_size(x: RewardInput, name: str) -> tuple[int, int] | None:
    size = x.columns.get(name)
    if size is None:
        return None
    whole = isinstance(size, list | tuple) and all(type(side) is int and side > 0 for side in size)
    if not whole or len(size) != 2:
        raise ValueError(f"column {name!r} is {size!r}; it must be [width, height] in pixels")
    return size[0], size[1]


@functools.lru_cache(maxsize=4096)
def _image_size(image: ImageRef) -> tuple[int, int]:
    """Return (width, height) as a viewer shows the image; the episodes of a group share it."""
    return open_image(image.path).size
