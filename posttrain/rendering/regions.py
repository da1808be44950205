"""What a text says of a part of an image, in the notation and the frame of each family.

Qwen2-VL has tokens of its own for what an object is called and where it is; the later families write numbers
in brackets, as in the JSON that they answer with.
"""

import dataclasses
from collections.abc import Callable, Sequence

from posttrain.rendering.rendered import RenderError
from posttrain.types import FAMILY_FRAMES, Block, ImageRef, Message, ModelFamily, Region

#: (width, height) of an image, and of what the processor makes of it.
Sizes = Callable[[ImageRef], tuple[tuple[int, int], tuple[int, int]]]


def with_regions_written(
    messages: Sequence[Message], family: ModelFamily, sizes: Sizes | None
) -> Sequence[Message]:
    """Return messages whose regions are texts as the family writes them.

    Raises:
        RenderError: If it is a text model, which sees no images.
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
    box = region.box.to(FAMILY_FRAMES[family], original=original, resized=resized)
    sides = [box.x1, box.y1] if region.is_point else [box.x1, box.y1, box.x2, box.y2]
    numbers = [round(side) for side in sides]
    if family != "qwen2_vl":
        return str(numbers)
    corners = ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    return f"<|box_start|>{corners}<|box_end|>"
