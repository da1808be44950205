"""The contents of messages: a text, or blocks of text, images and videos, as the formats write them.

Everything here maps parsed JSON to the canonical form's JSON; images and videos stay as the row has them.
"""

from collections.abc import Mapping
from typing import TypeAlias

from posttrain.data.formats.errors import DataError
from posttrain.data.formats.keys import VIDEO_KEYS, refuse_unread
from posttrain.data.formats.row import Row
from posttrain.files.strict_json import JsonError, parse_json

#: A text, or blocks.
Content: TypeAlias = str | list[Row]

_TEXT_BLOCKS = ("text", "input_text", "output_text")
_IMAGE_BLOCKS = {
    "image": ("image", "url", "path"),
    "image_url": ("image_url",),
    "input_image": ("image_url",),
}
_VIDEO_BLOCKS = {"video": ("video", "url", "path"), "video_url": ("video_url",)}
#: What other tools call the keys of a video; those of qwen-vl-utils.
_VIDEO_KEYS = {"video_start": "start", "video_end": "end", "sample_fps": "frame_rate"}
#: Keys of a block that change nothing that a model is shown here.
_SILENT = frozenset({"type", "detail", "cache_control"})


def read_content(value: object, path: str = "messages.content") -> Content:
    """Read a message's content: a text, or blocks whose images and videos are as the row has them.

    Args:
        value: The content.
        path: Where it is in the row, for errors.

    Raises:
        DataError: If a block is neither text nor an image nor a video, or has a key that is not read.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"content must be a text or a list of blocks, got {type(value).__name__}")
    return [
        {"type": "text", "text": block} if isinstance(block, str) else _block(block, path) for block in value
    ]


def as_list(value: object) -> list[object]:
    """Return a list as it is, None and "" as an empty one, and anything else as a list of one entry.

    A list that is written as JSON in a text is read.
    """
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = parse_json(value)
        except JsonError:
            return [value]
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def read_videos(row: Mapping[str, object]) -> list[Row]:
    """Read the videos that a row lists into the canonical form.

    Raises:
        DataError: If one is no path, nor a list of paths.
    """
    return [_video(video, _VIDEO_BLOCKS["video"], "videos") for video in as_list(row.get("videos"))]


def blocks_of(content: object) -> list[Row]:
    """Return the blocks that `read_content` made, or the only one of a text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content if isinstance(content, list) else []


def read_json(value: object, what: str) -> object:
    """Read JSON where it is written in a text; what is no text is returned as it is.

    Raises:
        DataError: If the text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except JsonError as error:
        raise DataError(f"{what} {value[:60]!r} cannot be read: {error}") from None


def _block(block: object, path: str) -> Row:
    if not isinstance(block, dict):
        raise DataError(f"content block {str(block)[:80]!r} is neither a text nor an image nor a video")
    kind = block["type"] if block.get("type") is not None else _told_by_its_keys(block)
    if not isinstance(kind, str):
        raise DataError(f"content block {str(block)[:80]!r} has a type that is no text")
    if kind in _TEXT_BLOCKS and isinstance(block.get("text"), str):
        refuse_unread(block, _SILENT | {"text"}, "a text block", path)
        return {"type": "text", "text": block["text"]}
    if kind in _VIDEO_BLOCKS:
        return {"type": "video"} | _video(block, _VIDEO_BLOCKS[kind], path)
    if kind not in _IMAGE_BLOCKS:
        raise DataError(f"content block {str(block)[:80]!r} is neither a text nor an image nor a video")
    keys = _IMAGE_BLOCKS[kind]
    refuse_unread(block, _SILENT.union(keys), "an image block", path)
    image = next((block[key] for key in keys if block.get(key) is not None), None)
    if isinstance(image, dict) and "url" in image:
        refuse_unread(image, {"url", "detail"}, "an image block", f"{path}.{keys[0]}")
        image = image["url"]
    if image is None and kind != "image":
        raise DataError(f"content block {str(block)[:80]!r} names no image")
    return {"type": "image"} if image is None else {"type": "image", "image": image}


def _told_by_its_keys(block: Row) -> str | None:
    """Return the type of a block that does not tell it, as Qwen-VL's own blocks, `{"image": "a.png"}`."""
    kinds = [kind for kind in ("text", *_IMAGE_BLOCKS, *_VIDEO_BLOCKS) if block.get(kind) is not None]
    if len(kinds) != 1:
        raise DataError(f"content block {str(block)[:80]!r} is neither a text nor an image nor a video")
    return kinds[0]


def _video(value: object, keys: tuple[str, ...], path: str) -> Row:
    """Read a video's path, or its frames', and how to sample it; {} of a block that only marks its place."""
    options: Row = {}
    if isinstance(value, dict):
        refuse_unread(value, VIDEO_KEYS | _SILENT | {*keys}, "a video", path)
        named = {_VIDEO_KEYS.get(key, key): item for key, item in value.items() if item is not None}
        options = {key: named[key] for key in ("fps", "frame_rate", "start", "end", "sha256") if key in named}
        value = next((named[key] for key in keys if key in named), None)
        if value is None and keys == _VIDEO_BLOCKS["video"]:
            return options
        if isinstance(value, dict):
            refuse_unread(value, {"url", "detail"}, "a video", f"{path}.{keys[0]}")
            value = value.get("url")
    paths = value if isinstance(value, list) else [value]
    if not paths or not all(isinstance(each, str | bytes | dict) for each in paths):
        raise DataError(
            f"a video must be a path, or a list of the paths of its frames, got {str(value)[:60]!r}"
        )
    if not isinstance(value, list) and not isinstance(value, str):
        raise DataError(
            "a video must be a path, or a list of its frames; write the bytes of a film to a file"
        )
    paths = [each.removeprefix("file://") if isinstance(each, str) else each for each in paths]
    return {"video": paths if isinstance(value, list) else paths[0]} | options
