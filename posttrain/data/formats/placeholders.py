"""Images and videos that a row lists apart from its text: each placeholder takes the next one."""

from collections.abc import Iterator, Sequence

from posttrain.data.formats.errors import DataError
from posttrain.data.formats.held import HELD
from posttrain.data.formats.keys import BLOCK_KEYS, refuse_unread
from posttrain.data.formats.row import Row
from posttrain.files.strict_json import JsonError, parse_json

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
        if listed := _listed(row, f"{kind}s"):
            turns = _placed(kind, listed, turns)
        else:
            _refuse_places(kind, turns)
    return turns


def json_messages(text: str) -> list[Row] | None:
    """Return the messages that a text is in JSON; None if it is any other text."""
    if text.lstrip()[:1] != "[" or text.rstrip()[-1:] != "]":
        return None
    try:
        found = parse_json(text)
    except JsonError:
        return None
    rows = found if isinstance(found, list) else []
    keys = ({"role", "content"}, {"from", "value"})
    known = all(isinstance(row, dict) and any(pair <= row.keys() for pair in keys) for row in rows)
    return rows if rows and known else None


def count_places(messages: list[Row], kind: str) -> int:
    """Count the places that messages have for images, or for videos."""
    return sum(_places(message, kind) for message in messages)


def _listed(row: Row, key: str) -> list[Row]:
    """Return the images, or videos, that a row lists, each as the part of a block that names it."""
    listed = row.get(key) or []
    if not isinstance(listed, list):
        raise DataError(f'"{key}" must be a list')
    if key == "videos":
        videos = [item if isinstance(item, dict) else {"video": item} for item in listed]
        for video in videos:
            refuse_unread(video, BLOCK_KEYS["video"], "a video", "videos", canonical=True)
        return videos
    if any(isinstance(image, dict) for image in listed):
        raise DataError(f"{HELD}: {str(listed)[:80]}")
    if not all(isinstance(image, str) for image in listed):
        raise DataError('"images" must be a list of paths')
    return [{"image": image} for image in listed]


#: Which messages and texts may have places: all of them, those of whom templates let show images, or none
#: but the blocks.
_SPEAKERS = (("system", "user", "assistant", "tool"), ("user", "tool"), ())


def _placed(kind: str, listed: list[Row], turns: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Return the turns with what is listed in its places.

    A text may also speak of `<image>`: where there are more places than images, those in an assistant's texts
    are none, and where the blocks alone are enough, none in any text is.
    """
    for speakers in _SPEAKERS:
        if _count(kind, turns, speakers) == len(listed):
            break
    else:
        places = sum(count_places(messages, kind) for messages in turns.values())
        raise DataError(
            f"the row lists {_number(len(listed), kind)} ({kind}s, {kind}) and its text has"
            f' {_number(places, "place")} ("{PLACEHOLDERS[kind]}") for them; write one for each, or a'
            f" block of the type {kind}; the formats trl and ms_swift show them first where no text has one"
        )
    supply = iter(listed)
    messages = [_filled(message, kind, supply, speakers) for message in turns["messages"]]
    left = list(supply)
    replies = {key: _reply(turns[key], kind, left, speakers) for key in ("chosen", "rejected")}
    return {"messages": messages, **replies}


def _count(kind: str, turns: dict[str, list[Row]], speakers: Sequence[str]) -> int:
    """Count the places of the prompt, and of the reply that has more of them."""
    places = {
        key: sum(_places(message, kind, speakers) for message in messages) for key, messages in turns.items()
    }
    return places["messages"] + max(places["chosen"], places["rejected"])


def _refuse_places(kind: str, turns: dict[str, list[Row]]) -> None:
    """Refuse a text that has a place for an image while the row lists none.

    A placeholder is text where the row shows its images by blocks, in an assistant's or a system's message,
    and in contents that are given as blocks.
    """
    text = PLACEHOLDERS[kind]
    messages = [message for part in turns.values() for message in part]
    places = [
        message for message in messages if isinstance(said := message.get("content"), str) and text in said
    ]
    if all(message.get("role") in ("assistant", "system") for message in places):
        return
    if not any(block.get("type") == kind for message in messages for block in _blocks(message)):
        raise DataError(
            f'a text says "{text}" and the row has no {kind} for it; list its path in "{kind}s", or put a'
            f" block of the type {kind} in its place; where the text speaks of it, give the content as"
            ' blocks, [{"type": "text", "text": …}]'
        )


def _reply(messages: list[Row], kind: str, listed: list[Row], speakers: Sequence[str]) -> list[Row]:
    supply = iter(listed)
    return [_filled(message, kind, supply, speakers) for message in messages]


def _turns(key: str, value: object) -> list[Row]:
    if value is None and key != "messages":
        return []
    if isinstance(value, str):
        found = json_messages(value)
        if found is None and key != "messages":
            return [{"role": "assistant", "content": value}]
        value = found
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f'the row needs "{key}", a list of objects')
    return value


def _places(message: Row, kind: str, speakers: Sequence[str] = _SPEAKERS[0]) -> int:
    text, content = PLACEHOLDERS[kind], message.get("content")
    in_texts = message.get("role") in speakers
    if isinstance(content, str):
        return content.count(text) if in_texts else 0
    blocks = _blocks(message)
    return sum(_is_place(block, kind) or (in_texts and _text(block).count(text)) for block in blocks)


def _blocks(message: Row) -> list[Row]:
    content = message.get("content")
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _filled(message: Row, kind: str, supply: Iterator[Row], speakers: Sequence[str]) -> Row:
    """Put the next images, or videos, into a message's places; one without places is returned as it is."""
    if not _places(message, kind, speakers):
        return message
    content, in_texts = message["content"], message.get("role") in speakers
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    filled: list[object] = []
    for block in blocks:
        if isinstance(block, dict) and _is_place(block, kind):
            filled.append(block | next(supply))
        elif in_texts and isinstance(block, dict) and PLACEHOLDERS[kind] in _text(block):
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
