"""What tools and environments return, as the model may see it: checked, cut to size, and stored."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from posttrain.failures import WorldError
from posttrain.media.images import check_size, save_image
from posttrain.types import Block
from tools_env.sdk import ToolResult

#: Longest text that one call puts into the dialogue, in characters.
MAX_TEXT = 4_000
#: Most images that one call puts into the dialogue.
MAX_IMAGES = 4
# What would pass for the template's own markup: `<|im_end|>`, `</tool_response>` …
_MARKUP = re.compile(r"<(?=\||/?(?:tool_call|tool_response|tools|think)>)")


def checked(result: Any) -> ToolResult:
    """Return a result whose images are decoded and within bounds.

    Raises:
        WorldError: If it is something else than a tool may return: the tool lies.
        ImageError: If an image is of a size that cannot be shown.
    """
    if (
        not isinstance(result, ToolResult)
        or not isinstance(result.text, str)
        or not isinstance(result.images, Sequence)
    ):
        raise WorldError(f"returned {result!r:.100}, which is no text, image or ToolResult")
    images = [_rgb(image) for image in result.images[:MAX_IMAGES]]
    return ToolResult(images_cut(result.text, len(result.images) - len(images)), images)


def images_cut(text: str, count: int) -> str:
    """Return a text that also says how many images were left out, if any were."""
    return f"{text[:MAX_TEXT]}\n[{count} more images were cut]" if count else text


def unmarked(text: str) -> str:
    """Free a text of what the chat template would take for its own markup."""
    return _MARKUP.sub("< ", text)


def readable(text: str) -> str:
    """Cut a text to size, and free it of what the chat template would take for its own markup."""
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}\n[{len(text) - MAX_TEXT:,} more characters were cut]"
    return unmarked(text).encode("utf-8", "replace").decode()


def blocks_of(result: ToolResult, image_dir: Path) -> list[Block]:
    """Return a checked result as blocks of a message, images first, and store its images."""
    images = [Block("image", image=save_image(image, image_dir)) for image in result.images]
    text = [Block("text", text=readable(result.text))] if result.text or not images else []
    return [*images, *text]


def checked_parts(shown: Any) -> list[str | Image.Image] | None:
    """Return what an environment shows, in its order, with images decoded and within bounds; None for None.

    Raises:
        TypeError: If there is something else among it.
        ImageError: If an image is of a size that cannot be shown.
    """
    if shown is None:
        return None
    given = [shown] if isinstance(shown, str | Image.Image) else shown
    if not isinstance(given, Sequence) or not all(isinstance(part, str | Image.Image) for part in given):
        raise TypeError(f"returned {shown!r:.100}, which is no text, no image and no list of them")
    return [part if isinstance(part, str) else _rgb(part) for part in given]


def blocks_of_parts(parts: Sequence[str | Image.Image], image_dir: Path) -> list[Block]:
    """Return checked parts as blocks of a message, and store their images."""
    return [
        Block("text", text=readable(part))
        if isinstance(part, str)
        else Block("image", image=save_image(part, image_dir))
        for part in parts
    ]


def _rgb(image: Any) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise WorldError(f"returned {image!r:.100} as an image")
    check_size(image.size)
    return image.convert("RGB")
