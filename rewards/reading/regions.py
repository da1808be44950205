"""Boxes and points: out of what a model wrote, in any family's format, and out of a ground truth.

Every box leaves here as a `posttrain.types.Box`, which carries its frame; a point is a box without extent.
"""

import functools
import re
from dataclasses import dataclass
from typing import get_args

from posttrain.media.images import open_image
from posttrain.messages import without_thinking
from posttrain.types import Box, Frame, ImageRef, RewardInput
from rewards.reading.answers import final_answer
from rewards.reading.region_forms import Kind, Region, all_regions, place_of

#: How many parts of a text are tried as its answer.
_MAX_PARTS = 4
FRAMES: tuple[Frame, ...] = get_args(Frame)

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_FENCED = re.compile(r"```[A-Za-z]{0,20}\n(.*?)```", re.DOTALL)
_MARKED = re.compile(
    r"\b(?:final |my )?answer\b[^\n.:：]{0,30}[:：]|答案[^\n。:：是为]{0,10}[是为:：]", re.IGNORECASE
)


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
    r"""Read the boxes and points of a model's final answer, valid or not.

    The answer is, after the thinking, the last `<answer>…</answer>`; else, if there are regions in it, the
    last `\boxed{…}`, code block, or what follows the last `Answer:`; else the whole text. So places that
    were only considered before neither count nor cost anything.

    Read are Qwen2-VL's `<|object_ref_start|>label<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`
    (a point has one pair) and the like (`<ref>`, `<box>`, `<point>`), Molmo's `<point x="…" y="…">`, and
    objects as those of Qwen2.5-VL and Qwen3-VL, `{"bbox_2d": [x1, y1, x2, y2], "label": …}` and `{"point_2d":
    [x, y], …}`, at any depth, with either kind of quotes, in code fences or in prose. Where there is none of
    these, `click(x=1, y=2)` counts; else bare `[x1, y1, x2, y2]`, `[x, y]`, `(x1,y1),(x2,y2)` and `(x,y)`.
    All numbers are in the family's frame, whatever the form.

    Args:
        text: What the model wrote. Time is linear in its length, and nothing in it raises.
        frame: The frame in which the model's family writes.
    """
    text = without_thinking(text)
    lower = text.lower()
    if "<answer>" in lower[: max(lower.rfind("</answer>"), 0)]:
        return all_regions(final_answer(text), frame)
    blocks, marks = _FENCED.findall(text), list(_MARKED.finditer(text))
    parts = [
        *([final_answer(text)] if _BOXED.search(text) else []),
        *reversed(blocks),
        *([text[marks[-1].end() :]] if marks else []),
    ]
    for part in parts[:_MAX_PARTS]:
        if regions := all_regions(part, frame):
            return regions
    return all_regions(text, frame)


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


def _plain_form(ground_truth: object) -> dict[str, object]:
    """Return the object form of a list: of boxes or points, or of the numbers of one."""
    values = _list(ground_truth, "")
    if values and not isinstance(values[0], list | tuple):
        values = [values]
    points = all(isinstance(value, list | tuple) and len(value) == 2 for value in values)
    return {"points" if values and points else "boxes": values}


def _gold_box(numbers: object, kind: Kind, frame: Frame) -> Box:
    box = place_of(list(numbers) if isinstance(numbers, tuple) else numbers, kind, frame)
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
