"""Images that a row lists apart from its text: each placeholder takes the next one."""

from collections.abc import Iterator
from typing import Any

from posttrain.data.formats.errors import DataError

#: Where an image belongs in a text.
PLACEHOLDER = "<image>"


def place_images(row: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The dialogue of a canonical row with its listed images in their places.

    `rejected` stands where `chosen` stands, so both take their images from what the prompt left.

    Args:
        row: With `messages`, perhaps with `images`, `chosen` and `rejected`.

    Returns:
        `messages`, `chosen` and `rejected`, each a list of messages, empty where the row has none.

    Raises:
        DataError: If a part is no list of messages, or there are more or fewer images than places.
    """
    images = row.get("images") or []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise DataError('"images" must be a list of paths')
    turns = {key: _turns(key, row.get(key)) for key in ("messages", "chosen", "rejected")}
    if not images:
        return turns
    places = {key: sum(map(_places, messages)) for key, messages in turns.items()}
    if places["messages"] + max(places["chosen"], places["rejected"]) != len(images):
        raise DataError(
            f"the row lists {_number(len(images), 'image')} and its text has"
            f' {_number(sum(places.values()), "place")} ("{PLACEHOLDER}") for them'
        )
    supply = iter(images)
    messages = [_filled(message, supply) for message in turns["messages"]]
    left = list(supply)
    replies = {key: _reply(turns[key], left) for key in ("chosen", "rejected")}
    return {"messages": messages, **replies}


def count_places(messages: list[dict[str, Any]]) -> int:
    """How many images the messages have places for."""
    return sum(map(_places, messages))


def _reply(messages: list[dict[str, Any]], images: list[str]) -> list[dict[str, Any]]:
    supply = iter(images)
    return [_filled(message, supply) for message in messages]


def _turns(key: str, value: Any) -> list[dict[str, Any]]:
    if value is None and key != "messages":
        return []
    if isinstance(value, str) and key != "messages":
        return [{"role": "assistant", "content": value}]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f'the row needs "{key}", a list of objects')
    return value


def _places(message: dict[str, Any]) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return content.count(PLACEHOLDER)
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    return sum(_is_place(block) or _text(block).count(PLACEHOLDER) for block in blocks)


def _filled(message: dict[str, Any], supply: Iterator[str]) -> dict[str, Any]:
    """A message with the next images in its places; a message without any is returned as it is."""
    if not _places(message):
        return message
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    filled: list[Any] = []
    for block in blocks:
        if isinstance(block, dict) and _is_place(block):
            filled.append(block | {"image": next(supply)})
        elif isinstance(block, dict) and PLACEHOLDER in _text(block):
            for number, text in enumerate(block["text"].split(PLACEHOLDER)):
                filled += [{"type": "image", "image": next(supply)}] if number else []
                filled += [{"type": "text", "text": text}] if text else []
        else:
            filled.append(block)
    return message | {"content": filled}


def _is_place(block: dict[str, Any]) -> bool:
    return block.get("type") == "image" and "image" not in block


def _text(block: dict[str, Any]) -> str:
    text = block.get("text")
    return text if block.get("type") == "text" and isinstance(text, str) else ""


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
