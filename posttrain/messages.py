"""Messages as JSON: the canonical form, which data files, rollouts and requests to rewards share.

Beside its neighbours it imports only the standard library, so that plugins can use it.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias, get_args

from posttrain.files.strict_json import Json, JsonObject
from posttrain.types import Block, Box, Frame, ImageRef, Message, Region, VideoRef

#: A message as JSON: `role`, `content` (a list of blocks), and `train` where the message has it.
MessageRow: TypeAlias = dict[str, Any]
#: The marks around a model's thinking.
THINK_START, THINK_END = "<think>", "</think>"


def without_thinking(text: str) -> str:
    """Return what a turn says outside of its thinking, without white space around it.

    It is what follows the last `</think>`: a model may think several times, and what it wrote in between is
    no answer yet. The opening tag may stand in the prompt, so it need not be there. A `<think>` that is not
    closed hides the rest, so a turn that was cut off while thinking says nothing.
    """
    return text.rpartition(THINK_END)[2].partition(THINK_START)[0].strip()


def message_to_json(message: Message) -> MessageRow:
    """Write a message in the canonical JSON form, images and videos by path."""
    content: list[Json] = []
    for block in message.content:
        if block.image is not None:
            content.append({"type": "image", "image": block.image.path, "sha256": block.image.sha256})
        elif block.video is not None:
            content.append({"type": "video"} | _video_to_json(block.video))
        elif block.region is not None:
            content.append({"type": "region"} | _region_to_json(block.region))
        else:
            content.append({"type": "text", "text": block.text})
    chosen = {} if message.train is None else {"train": message.train}
    return {"role": message.role, "content": content} | chosen


def message_from_json(row: Mapping[str, object]) -> Message:
    """Read the canonical JSON form; a plain string is one text block.

    Raises:
        ValueError: If the role or a block is not of the canonical form.
    """
    role, content, train = row.get("role"), row.get("content"), row.get("train")
    if role not in ("system", "user", "assistant", "tool"):
        raise ValueError(f"message role {role!r} is not one of system, user, assistant, tool")
    if train is not None and not isinstance(train, bool):
        raise ValueError(f"message key train is {train!r}, neither true nor false")
    if isinstance(content, str):
        return Message(role, (Block("text", text=content),), train)
    if not isinstance(content, list):
        raise ValueError(
            f"message content must be a string or a list of blocks, got {type(content).__name__}"
        )
    blocks: list[Block] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and isinstance(block.get("text"), str):
            blocks.append(Block("text", text=block["text"]))
        elif kind == "image" and isinstance(block.get("image"), str):
            blocks.append(Block("image", image=ImageRef(block["image"], str(block.get("sha256", "")))))
        elif kind == "video":
            blocks.append(Block("video", video=_video_from_json(block)))
        elif kind == "region":
            blocks.append(_region_from_json(block))
        else:
            raise ValueError(
                f"message block {str(block)[:80]!r} is neither a text nor an image nor a video block"
            )
    return Message(role, tuple(blocks), train)


def _video_to_json(video: VideoRef) -> JsonObject:
    written: JsonObject = {"video": video.paths[0] if len(video.paths) == 1 else [*video.paths]}
    for key in ("sha256", "fps", "frame_rate", "start", "end"):
        if getattr(video, key):
            written[key] = getattr(video, key)
    return written


def _video_from_json(block: Mapping[str, object]) -> VideoRef:
    video = block.get("video")
    paths = [video] if isinstance(video, str) else video
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(
            f"a video must be a path or a list of the paths of its frames, got {str(video)[:80]!r}"
        )
    numbers: dict[str, float] = {}
    for key in ("fps", "frame_rate", "start", "end"):
        value = block.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"a video's {key} must be a number, got {str(value)[:40]!r}")
        numbers[key] = value
    return VideoRef(tuple(paths), str(block.get("sha256", "")), **numbers)


def _region_to_json(region: Region) -> JsonObject:
    if region.box is None:
        return {"label": region.label}
    box = region.box
    sides = [box.x1, box.y1] if region.is_point else [box.x1, box.y1, box.x2, box.y2]
    image = "" if region.image is None else region.image.path
    return {"region": [*sides], "frame": box.frame, "image": image}


def _region_from_json(block: Mapping[str, object]) -> Block:
    label, sides, frame, image = (block.get(key) for key in ("label", "region", "frame", "image"))
    if isinstance(label, str) and label and sides is None:
        return Block("region", text=label, region=Region(label))
    numbers = [side for side in sides if isinstance(side, int | float)] if isinstance(sides, list) else []
    if not isinstance(sides, list) or len(numbers) != len(sides) or len(sides) not in (2, 4):
        raise ValueError(f"a region needs a label, or [x1, y1, x2, y2] or [x, y], got {str(block)[:80]!r}")
    frames: dict[object, Frame] = {known: known for known in get_args(Frame)}
    if frame not in frames or not isinstance(image, str):
        raise ValueError(f"a region needs its image and a frame of {', '.join(get_args(Frame))}")
    corners = numbers if len(numbers) == 4 else [*numbers, *numbers]
    region = Region(box=Box(*corners, frame=frames[frame]), image=ImageRef(image), is_point=len(numbers) == 2)
    return Block("region", text=str(numbers), region=region)
