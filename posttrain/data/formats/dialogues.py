"""What the formats of other tools share: turns, content blocks, tool calls and tool schemas.

Everything here maps parsed JSON to the canonical form's JSON; paths, roles and counts are checked when the
canonical row is read.
"""

import json
from collections.abc import Mapping
from typing import TypeAlias

from posttrain.data.formats.errors import DataError
from posttrain.data.formats.placeholders import count_places
from posttrain.data.formats.row import Row
from posttrain.files.strict_json import JsonError, parse_json
from posttrain.messages import THINK_END

#: Roles as the formats name them. A `call` is an assistant's turn whose content is the call's JSON.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "tool_call": "call",
    "function_call": "call",
}
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


def read_turns(
    value: object,
    *,
    role_key: str = "role",
    content_key: str = "content",
    roles: Mapping[str, str] = ROLES,
) -> list[Row]:
    """Rewrite messages of another tool in the canonical form.

    A call that follows an assistant's text becomes part of that turn, because the model writes both in one.

    Args:
        value: A list of messages.
        role_key: Where a message says who speaks.
        content_key: Where it says what.
        roles: What each name of a role means.

    Raises:
        DataError: If it is no list of messages, or a role or a block is unknown.
    """
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"the messages must be a list of objects, got {str(value)[:60]!r}")
    turns: list[Row] = []
    for item in value:
        name = item.get(role_key)
        role = roles.get(name) if isinstance(name, str) else None
        if role is None:
            raise DataError(f"{role_key} {name!r} is none of {', '.join(roles)}")
        content = read_content(item.get(content_key))
        if role == "call":
            content = tool_call_text(_json(content, "a call"))
            if turns and turns[-1]["role"] == "assistant":
                turns[-1]["content"] = _joined(turns[-1]["content"], content)
                continue
        elif role == "assistant":
            content = _assistant(item, content)
        speaker = "assistant" if role == "call" else role
        turns.append({"role": speaker, "content": content, **_loss(item, speaker)})
    return turns


def read_content(value: object) -> Content:
    """Read a message's content: a text, or blocks whose images and videos are as the row has them.

    Raises:
        DataError: If a block is neither text nor an image nor a video.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"content must be a text or a list of blocks, got {type(value).__name__}")
    return [{"type": "text", "text": block} if isinstance(block, str) else _block(block) for block in value]


def read_tools(value: object) -> list[object]:
    """Read tool schemas, also where they are JSON in a text, as `{"type": "function", "function": {…}}`.

    Raises:
        DataError: If it is no list of tools.
    """
    if value is None or value == "":
        return []
    tools = _json(value, "the tools") if isinstance(value, str) else value
    if not isinstance(tools, list):
        raise DataError(f"the tools must be a list, got {type(tools).__name__}")
    tools = [_json(tool, "a tool") if isinstance(tool, str) and "{" in tool else tool for tool in tools]
    return [
        {"type": "function", "function": tool} if isinstance(tool, dict) and "function" not in tool else tool
        for tool in tools
    ]


def as_list(value: object) -> list[object]:
    """Return a list as it is, None as an empty one, and anything else as a list of one entry."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def read_videos(row: Mapping[str, object]) -> list[Row]:
    """Read the videos that a row lists into the canonical form.

    Raises:
        DataError: If one is no path, nor a list of paths.
    """
    return [_video(video) for video in as_list(row.get("videos")) or as_list(row.get("video"))]


def tool_call_text(call: object) -> str:
    """Write a call as the families' chat templates do; a list of calls as one after another.

    Raises:
        DataError: If it names no function.
    """
    if isinstance(call, list):
        return "\n".join(tool_call_text(item) for item in call)
    function = call.get("function", call) if isinstance(call, dict) else {}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"the tool call {str(call)[:80]!r} has no name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        _json(arguments, "a call's arguments")
        written = arguments  # as the templates write a text: 1e-3 stays 1e-3
    else:
        written = json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {written}}}\n</tool_call>'


def reply(value: object) -> list[Row]:
    """Read a preferred or rejected reply: a text, a message, or messages."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return read_turns(as_list(value))


def with_system(text: object, turns: list[Row]) -> list[Row]:
    """Put a system text before a dialogue, where there is one and the dialogue has none itself."""
    if not text or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": text}, *turns]


def show_first(turns: list[Row], kind: str, count: int) -> list[Row]:
    """Put places for `count` images, or videos, before the first user text, if there is no place for any."""
    first = next((index for index, turn in enumerate(turns) if turn["role"] == "user"), None)
    blocks = [block for turn in turns for block in _blocks(turn["content"]) if isinstance(block, dict)]
    has_some = any(block.get("type") == kind for block in blocks)
    if not count or first is None or has_some or count_places(turns, kind):
        return turns
    places: list[Row] = [{"type": kind} for _ in range(count)]
    shown = turns[first] | {"content": places + _blocks(turns[first]["content"])}
    return [*turns[:first], shown, *turns[first + 1 :]]


def _loss(item: Row, role: str) -> dict[str, bool]:
    """Read whether a turn is learned: `train` of ours, `loss` in ms-swift, `weight` at OpenAI."""
    marks = [item[key] for key in ("train", "loss", "weight") if item.get(key) is not None]
    if not marks or role != "assistant":
        return {}
    if marks[0] not in (0, 1):
        raise DataError(f"a message's loss is {marks[0]!r}; a turn is learned or not: true or false")
    return {"train": bool(marks[0])}


def _assistant(item: Row, content: Content) -> Content:
    """Put an assistant's thinking before its content and its calls after, as Qwen3's templates write them."""
    thinking, calls = item.get("reasoning_content"), item.get("tool_calls")
    if not (isinstance(thinking, str) and thinking):
        return _joined(content, tool_call_text(calls)) if calls else content
    thinking = thinking.strip("\n")
    spoken = _blocks(content)
    turn = [_text(f"<think>\n{thinking}\n</think>\n\n"), *_without_leading_breaks(spoken)]
    return [*turn, _text(("\n" if spoken else "") + tool_call_text(calls))] if calls else turn


def _joined(content: object, text: str) -> Content:
    """Return content with a call's text on a line of its own after it, or a blank line after thinking."""
    blocks = _blocks(content)
    if not blocks:
        return text if isinstance(content, str) else [_text(text)]
    last = str(blocks[-1].get("text") or "").rstrip("\n")
    if last.endswith(THINK_END):
        joined = [*blocks[:-1], _text(f"{last}\n\n{text}")]
    else:
        joined = [*blocks, _text(f"\n{text}")]
    return "".join(str(block["text"]) for block in joined) if isinstance(content, str) else joined


def _without_leading_breaks(blocks: list[Row]) -> list[Row]:
    """Remove the line breaks with which the texts at the beginning begin, up to the first that says more."""
    kept = list(blocks)
    for place, block in enumerate(blocks):
        if not isinstance(block.get("text"), str):
            break
        kept[place] = block | {"text": str(block["text"]).lstrip("\n")}
        if kept[place]["text"]:
            break
    return kept


def _text(text: str) -> Row:
    return {"type": "text", "text": text}


def _blocks(content: object) -> list[Row]:
    """Return the blocks that `read_content` made, or the only one of a text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content if isinstance(content, list) else []


def _block(block: object) -> Row:
    if not isinstance(block, dict):
        raise DataError(f"content block {str(block)[:80]!r} is neither a text nor an image nor a video")
    kind = block.get("type")
    if kind in _TEXT_BLOCKS and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    if kind in _VIDEO_BLOCKS:
        return {"type": "video"} | _video(block, _VIDEO_BLOCKS[kind])
    if kind not in _IMAGE_BLOCKS:
        raise DataError(f"content block {str(block)[:80]!r} is neither a text nor an image nor a video")
    image = next((block[key] for key in _IMAGE_BLOCKS[kind] if block.get(key) is not None), None)
    if isinstance(image, dict) and "url" in image:
        image = image["url"]
    if image is None and kind != "image":
        raise DataError(f"content block {str(block)[:80]!r} names no image")
    return {"type": "image"} if image is None else {"type": "image", "image": image}


def _video(value: object, keys: tuple[str, ...] = _VIDEO_BLOCKS["video"]) -> Row:
    """Read a video's path, or its frames', and how to sample it; {} of a block that only marks its place."""
    options = {}
    if isinstance(value, dict):
        named = {_VIDEO_KEYS.get(key, key): item for key, item in value.items() if item is not None}
        options = {key: named[key] for key in ("fps", "frame_rate", "start", "end", "sha256") if key in named}
        value = next((named[key] for key in keys if key in named), None)
        if value is None and keys == _VIDEO_BLOCKS["video"]:
            return options
        value = value.get("url") if isinstance(value, dict) else value
    paths = value if isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise DataError(
            f"a video must be a path, or a list of the paths of its frames, got {str(value)[:60]!r}"
        )
    paths = [path.removeprefix("file://") for path in paths]
    return {"video": paths if isinstance(value, list) else paths[0]} | options


def _json(value: object, what: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except JsonError as error:
        raise DataError(f"{what} {value[:60]!r} cannot be read: {error}") from None
