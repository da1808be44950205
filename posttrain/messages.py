"""Messages as JSON: the canonical form, which data files, rollouts and requests to rewards share.

It imports only the standard library, as `posttrain.types` does.
"""

from typing import Any

from posttrain.types import Block, ImageRef, Message, VideoRef


def message_to_json(message: Message) -> dict[str, Any]:
    """A message in the canonical JSON form, images and videos by path."""
    content: list[dict[str, Any]] = []
    for block in message.content:
        if block.image is not None:
            content.append({"type": "image", "image": block.image.path, "sha256": block.image.sha256})
        elif block.video is not None:
            content.append({"type": "video"} | _video_to_json(block.video))
        else:
            content.append({"type": "text", "text": block.text})
    chosen = {} if message.train is None else {"train": message.train}
    return {"role": message.role, "content": content} | chosen


def message_from_json(row: dict[str, Any]) -> Message:
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
        else:
            raise ValueError(
                f"message block {str(block)[:80]!r} is neither a text nor an image nor a video block"
            )
    return Message(role, tuple(blocks), train)


def _video_to_json(video: VideoRef) -> dict[str, Any]:
    written: dict[str, Any] = {"video": video.paths[0] if len(video.paths) == 1 else list(video.paths)}
    for key in ("sha256", "fps", "frame_rate", "start", "end"):
        if getattr(video, key):
            written[key] = getattr(video, key)
    return written


def _video_from_json(block: dict[str, Any]) -> VideoRef:
    video = block.get("video")
    paths = [video] if isinstance(video, str) else video
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(
            f"a video must be a path or a list of the paths of its frames, got {str(video)[:80]!r}"
        )
    numbers: dict[str, Any] = {
        key: block[key] for key in ("fps", "frame_rate", "start", "end") if block.get(key) is not None
    }
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"a video's {key} must be a number, got {str(value)[:40]!r}")
    return VideoRef(tuple(paths), str(block.get("sha256", "")), **numbers)


def without_thinking(text: str) -> str:
    """Return the answer of a turn: what follows its last thought; nothing of a thought without an end."""
    answer = text.rpartition("</think>")[2]
    return answer.partition("<think>")[0].strip()
