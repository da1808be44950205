"""Images and videos that a row lists apart from its text: each placeholder takes the next one."""

from collections.abc import Iterator

from posttrain.data.formats.errors import DataError
from posttrain.data.formats.row import Row

#: Where an image or a video belongs in a text.
PLACEHOLDERS = {"image": "<image>", "video": "<video>"}


def place_media(row: Row) -> dict[str, list[Row]]:
    """Return the dialogue of a canonical row with its listed images and videos in their places.

    `rejected` stands where `chosen` stands, so both take theirs from what the prompt left.

    Args:
        row: With `messages`, perhaps with `images`, `videos`, `chosen` and `rejected`.

    Returns:
        `messages`, `chosen` and `rejected`, each a list of messages, empty where the row has none.

    Raises:
        DataError: If a part is no list of messages, or there are more or fewer images than places.
    """
    turns = {key: _turns(key, row.get(key)) for key in ("messages", "chosen", "rejected")}
    for kind in PLACEHOLDERS:
        turns = _placed(kind, _listed(row, f"{kind}s"), turns)
    return turns


def count_places(messages: list[Row], kind: str) -> int:
    """Count the places that messages have for images, or for videos."""
    return sum(_places(message, kind) for message in messages)


def _listed(row: Row, key: str) -> list[Row]:
    """Return the images, or videos, that a row lists, each as the part of a block that names it."""
    listed = row.get(key) or []
    if not isinstance(listed, list):
        raise DataError(f'"{key}" must be a list')
    if key == "videos":
        return [item if isinstance(item, dict) else {"video": item} for item in listed]
    if not all(isinstance(image, str) for image in listed):
        raise DataError('"images" must be a list of paths')
    return [{"image": image} for image in listed]


def _placed(kind: str, listed: list[Row], turns: dict[str, list[Row]]) -> dict[str, list[Row]]:
    if not listed:
        return turns
    places = {key: count_places(messages, kind) for key, messages in turns.items()}
    if places["messages"] + max(places["chosen"], places["rejected"]) != len(listed):
        raise DataError(
            f"the row lists {_number(len(listed), kind)} and its text has"
            f' {_number(sum(places.values()), "place")} ("{PLACEHOLDERS[kind]}") for them'
        )
    supply = iter(listed)
    messages = [_filled(message, kind, supply) for message in turns["messages"]]
    left = list(supply)
    replies = {key: _reply(turns[key], kind, left) for key in ("chosen", "rejected")}
    return {"messages": messages, **replies}


def _reply(messages: list[Row], kind: str, listed: list[Row]) -> list[Row]:
    supply = iter(listed)
    return [_filled(message, kind, supply) for message in messages]


def _turns(key: str, value: object) -> list[Row]:
    if value is None and key != "messages":
        return []
    if isinstance(value, str) and key != "messages":
        return [{"role": "assistant", "content": value}]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f'the row needs "{key}", a list of objects')
    return value


def _places(message: Row, kind: str) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return content.count(PLACEHOLDERS[kind])
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    return sum(_is_place(block, kind) or _text(block).count(PLACEHOLDERS[kind]) for block in blocks)


def _filled(message: Row, kind: str, supply: Iterator[Row]) -> Row:
    """Put the next images, or videos, into a message's places; one without places is returned as it is."""
    if not _places(message, kind):
        return message
    content = message["content"]
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    filled: list[object] = []
    for block in blocks:
        if isinstance(block, dict) and _is_place(block, kind):
            filled.append(block | next(supply))
        elif isinstance(block, dict) and PLACEHOLDERS[kind] in _text(block):
            for number, text in enumerate(block["text"].split(PLACEHOLDERS[kind])):
                filled += [{"type": kind, **next(supply)}] if number else []
                filled += [{"type": "text", "text": text}] if text else []
        else:
            filled.append(block)
    return message | {"content": filled}


def _is_place(block: Row, kind: str) -> bool:
    return block.get("type") == kind and kind not in block


def _text(block: Row) -> str:
    text = block.get("text")
    return text if block.get("type") == "text" and isinstance(text, str) else ""


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
