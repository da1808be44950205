"""What a text says of a part of an image, in the notation and the frame of each family.

Qwen2-VL has tokens of its own for what an object is called and where it is; the later families write numbers
in brackets, as in the JSON that they answer with.
"""

import dataclasses
from collections.abc import Callable, Sequence

from posttrain.rendering.rendered import RenderError
from posttrain.types import FAMILY_FRAMES, Block, Box, ImageRef, Message, ModelFamily, Region

#: How far a box may reach beyond its image, in thousandths of its side: annotators' hands are not exact.
_BEYOND = 50
#: (width, height) of an image, and of what the processor makes of it.
Sizes = Callable[[ImageRef], tuple[tuple[int, int], tuple[int, int]]]


def with_regions_written(
    messages: Sequence[Message], family: ModelFamily, sizes: Sizes | None
) -> Sequence[Message]:
    """Return messages whose regions are texts as the family writes them.

    Raises:
        RenderError: If it is a text model, which sees no images, or a box is none of its image.
        ImageError: If an image cannot be read.
    """
    if all(block.region is None for message in messages for block in message.content):
        return messages

    def block_of(block: Block) -> Block:
        return block if block.region is None else Block("text", text=_written(block.region, family, sizes))

    return [
        dataclasses.replace(message, content=tuple(map(block_of, message.content))) for message in messages
    ]


def _written(region: Region, family: ModelFamily, sizes: Sizes | None) -> str:
    if region.box is None or region.image is None:
        marked = family == "qwen2_vl"
        return f"<|object_ref_start|>{region.label}<|object_ref_end|>" if marked else region.label
    if family == "text" or sizes is None:
        raise RenderError("a message tells where something is in an image, and a text model sees none")
    original, resized = sizes(region.image)
    _check(region.box, original)
    box = region.box.to(FAMILY_FRAMES[family], original=original, resized=resized)
    sides = [box.x1, box.y1] if region.is_point else [box.x1, box.y1, box.x2, box.y2]
    numbers = [round(side) for side in sides]
    if family != "qwen2_vl":
        return str(numbers)
    corners = ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    return f"<|box_start|>{corners}<|box_end|>"


def _check(box: Box, size: tuple[int, int]) -> None:
    """Refuse a box that does not lie in its image: its numbers are in another frame, or another order."""
    written = [box.x1, box.y1, box.x2, box.y2]
    if box.x2 < box.x1 or box.y2 < box.y1:
        raise RenderError(
            f"the box {written} ends before it begins; a box is [x1, y1, x2, y2], not a corner, a width and"
            " a height"
        )
    shares = box.to("norm_1000", original=size)
    sides = (shares.x1, shares.y1, shares.x2, shares.y2)
    if min(sides) < -_BEYOND or max(sides) > 1000 + _BEYOND:
        unit = "thousandths" if box.frame == "norm_1000" else "pixels"
        raise RenderError(
            f"the box {written} ({unit}) leaves its image of {size[0]}×{size[1]} pixels; objects.bbox_type"
            " says what the numbers are: real (pixels of the file), norm1 (0 to 1) or norm1000 (0 to 1000)"
        )
