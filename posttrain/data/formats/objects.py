"""ms-swift's `objects`: the names and boxes that `<ref-object>` and `<bbox>` in the texts stand for.

    {"messages": [{"role": "user", "content": "<image>Where is the <ref-object>?"},
                  {"role": "assistant", "content": "<bbox>"}], "images": ["a.png"],
     "objects": {"ref": ["mug"], "bbox": [[12, 8, 40, 60]], "bbox_type": "real", "image_id": [0]}}

Each becomes a block of the type `region`, which keeps the numbers of the row and the frame that they are in;
whoever renders the dialogue writes them as the model's family does. `bbox_type` is `real` (pixels of the
file, the default), `norm1` (0 to 1) or `norm1000`; `image_id` says which of the row's images a box is of, the
first by default. A box of two numbers is a point.
"""

import re
from collections.abc import Iterator, Mapping

from posttrain.data.formats.blocks import as_list, blocks_of, read_json
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.keys import is_empty, refuse_unread
from posttrain.data.formats.row import Row

_PLACES = re.compile("(<ref-object>|<bbox>)")
#: By `bbox_type`: the frame, and what the numbers are multiplied by to be in it.
_FRAMES = {"real": ("pixel_original", 1), "norm1": ("norm_1000", 1000), "norm1000": ("norm_1000", 1)}


def place_objects(turns: list[Row], objects: object, images: list[object]) -> list[Row]:
    """Return the turns with regions in the places of the row's objects.

    Args:
        turns: In the canonical form.
        objects: The row's `objects`, perhaps as JSON in a text.
        images: The images that the row lists.

    Raises:
        DataError: If they are of another form, or there are more or fewer than places for them.
    """
    if is_empty(objects):
        return turns
    objects = read_json(objects, "objects")
    if not isinstance(objects, dict):
        raise DataError(f'"objects" must be an object with "ref" and "bbox", got {str(objects)[:60]!r}')
    refuse_unread(objects, {"ref", "bbox", "bbox_type", "image_id"}, "objects", "objects")
    found = {"<ref-object>": _labels(objects), "<bbox>": _boxes(objects, images)}
    for place, regions in found.items():
        count = sum(
            str(block.get("text")).count(place) for turn in turns for block in blocks_of(turn["content"])
        )
        if count != len(regions):
            raise DataError(
                f"objects lists {len(regions)} of what {place} stands for, and the texts of messages have"
                f" {count} of these places"
            )
    supply = {place: iter(regions) for place, regions in found.items()}
    return [turn | {"content": _filled(turn["content"], supply)} for turn in turns]


def refuse_places(turns: list[Row]) -> None:
    """Refuse a rejected reply with places for objects: those of the row are the chosen one's.

    Raises:
        DataError: If it has some.
    """
    if any(_PLACES.search(str(block.get("text"))) for turn in turns for block in blocks_of(turn["content"])):
        raise DataError(
            "the rejected reply has <bbox> or <ref-object>, and objects are filled into messages alone; write"
            " its numbers and names as text"
        )


def _labels(objects: Row) -> list[Row]:
    labels = as_list(objects.get("ref"))
    if not all(isinstance(label, str) and label for label in labels):
        raise DataError("objects.ref must be a list of texts")
    return [{"type": "region", "label": label} for label in labels]


def _boxes(objects: Row, images: list[object]) -> list[Row]:
    boxes = as_list(objects.get("bbox"))
    kind = objects.get("bbox_type") or "real"
    if kind not in _FRAMES:
        raise DataError(f"objects.bbox_type is {str(kind)[:40]!r}; known are {', '.join(_FRAMES)}")
    frame, factor = _FRAMES[str(kind)]
    numbers = as_list(objects.get("image_id")) or [0] * len(boxes)
    if len(numbers) != len(boxes):
        raise DataError(f"objects has {len(boxes)} boxes and {len(numbers)} entries of image_id")
    regions: list[Row] = []
    for box, number in zip(boxes, numbers, strict=True):
        if not isinstance(box, list) or len(box) not in (2, 4) or not all(map(_is_number, box)):
            raise DataError(f"objects.bbox has {str(box)[:60]!r}; a box is [x1, y1, x2, y2], a point [x, y]")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(images):
            raise DataError(
                f"objects.image_id is {str(number)[:40]!r}; the row lists {len(images)} images, from 0"
            )
        scaled = [side * factor for side in box]
        regions.append({"type": "region", "region": scaled, "frame": frame, "image": images[number]})
    return regions


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _filled(content: object, supply: Mapping[str, Iterator[Row]]) -> object:
    """Put the next names and boxes into the places of a content; one without places is returned as it is."""
    blocks = blocks_of(content)
    if not any(_PLACES.search(str(block.get("text"))) for block in blocks):
        return content
    filled: list[Row] = []
    for block in blocks:
        if block.get("type") != "text":
            filled.append(block)
            continue
        for part in _PLACES.split(str(block["text"])):
            if part in supply:
                filled.append(next(supply[part]))
            elif part:
                filled.append({"type": "text", "text": part})
    return filled
