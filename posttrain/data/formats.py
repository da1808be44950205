"""The canonical format: JSON lines, a sample each, images as files.

    {"id": "7", "messages": [{"role": "user", "content": [{"type": "image", "image": "images/7.png"},
     {"type": "text", "text": "What is it?"}]}, {"role": "assistant", "content": "A cup."}],
     "ground_truth": "cup", "tools": ["image_zoom_in"], "any other column": 1}

`id` and `messages` are required. Image paths are relative to the file's folder.
"""

import json
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.strict_json import JsonError, parse_json
from posttrain.types import Block, ImageRef, Message, Sample, message_from_json, message_to_json

#: Longest row, in bytes; a dialogue of 256K tokens is about 1 MB.
MAX_ROW_BYTES = 16 * 2**20
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_OWN_KEYS = ("id", "messages", "ground_truth", "tools")


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the line and the reason."""


def read_canonical(path: str | Path) -> Iterator[Sample]:
    """Read every row, images by absolute path and unopened.

    Raises:
        DataError: At the first row that is not of the canonical form, as `file:line: reason`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            for number, _, line in rows(file):
                try:
                    yield parse_row(line, path.parent)
                except DataError as error:
                    raise DataError(f"{path}:{number}: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def write_canonical(samples: Iterable[Sample], path: str | Path) -> None:
    """Write rows so that `read_canonical` gives the same samples; the file appears complete or not at all.

    Images inside the file's folder are written relative to it.

    Raises:
        DataError: If a sample is not of the canonical form, or a column has a name of the format's own.
    """
    path = Path(path).absolute()
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for sample in samples:
                file.write(_row(sample, path.parent.resolve()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def rows(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """The lines of a file that are not blank, as (line number from 1, byte offset, bytes).

    A line longer than the limit comes cut to one byte above it, so that `parse_row` refuses it.
    """
    number = offset = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        length, rest = len(line), line
        while not rest.endswith(b"\n") and (rest := file.readline(MAX_ROW_BYTES)):
            length += len(rest)
        if line.strip():
            yield number, offset, line
        offset += length


def parse_row(line: bytes, folder: Path) -> Sample:
    """One row as a sample.

    Args:
        line: A JSON object in UTF-8.
        folder: What image paths are relative to, and may not leave.

    Raises:
        DataError: With the reason; the caller knows the file and the line.
    """
    if len(line) > MAX_ROW_BYTES:
        raise DataError(f"the row is longer than {MAX_ROW_BYTES:,} bytes")
    try:
        row = parse_json(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except JsonError as error:
        raise DataError(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object, got {type(row).__name__}")
    name, tools = row.get("id"), row.get("tools", [])
    if not isinstance(name, str) or not name:
        raise DataError('the row needs an "id", a string')
    if not isinstance(tools, list) or not all(isinstance(tool, str) for tool in tools):
        raise DataError('"tools" must be a list of names')
    columns = {key: value for key, value in row.items() if key not in _OWN_KEYS}
    messages = _messages(row.get("messages"), folder)
    return Sample(name, messages, row.get("ground_truth"), tuple(tools), columns)


def image_path(written: str, folder: Path) -> Path:
    """Where a row's image is; nothing is opened.

    Raises:
        DataError: If it is a URL, does not exist, is no regular file with an image's suffix, or a relative
            path leads out of the folder, be it by `..` or by a symbolic link.
    """
    if "://" in written or written.startswith("data:"):
        raise DataError(f"image {written[:200]!r} is a URL; download it and give its path")
    root = folder.resolve()
    try:
        path = (root / written).resolve(strict=True)
        kind = path.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that go in a circle
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"image {written[:200]!r} cannot be found: {reason}") from None
    if not Path(written).is_absolute() and not path.is_relative_to(root):
        raise DataError(f"image {written[:200]!r} leads out of {root}; move it there")
    if not stat.S_ISREG(kind):
        raise DataError(f"image {written[:200]!r} is not a regular file")
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"image {written[:200]!r} must end in one of {', '.join(IMAGE_SUFFIXES)}")
    return path


def _messages(value: Any, folder: Path) -> tuple[Message, ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError('the row needs "messages", a list of objects')
    try:
        messages = tuple(message_from_json(item) for item in value)
    except ValueError as error:
        raise DataError(str(error)) from None
    _check_dialogue(messages)
    return tuple(Message(message.role, _located(message.content, folder)) for message in messages)


def _located(blocks: tuple[Block, ...], folder: Path) -> tuple[Block, ...]:
    """The same blocks, with images by absolute path."""
    return tuple(
        block
        if block.image is None
        else Block("image", image=ImageRef(str(image_path(block.image.path, folder)), block.image.sha256))
        for block in blocks
    )


def _check_dialogue(messages: tuple[Message, ...]) -> None:
    """Refuse an order of roles that no chat template can mean."""
    roles = [message.role for message in messages]
    if "user" not in roles:
        raise DataError("the dialogue has no user message")
    if "system" in roles[1:]:
        raise DataError("a system message may only come first")
    for before, role in zip([None, *roles], roles, strict=False):
        if role == "assistant" and before in (None, "system", "assistant"):
            raise DataError(f"an assistant message follows {before or 'nothing'}, not a user or a tool")
        if role == "tool" and before not in ("assistant", "tool"):
            raise DataError(f"a tool message follows {before or 'nothing'}, not an assistant's call")
    if any(not message.content for message in messages):
        raise DataError("a message has no content")
    has_images = any(message.images for message in messages)
    if not has_images and any("<image>" in message.text for message in messages):
        raise DataError('a text says "<image>" and the row has no image; put an image block in its place')


def _row(sample: Sample, root: Path) -> str:
    clashing = sorted(set(sample.columns) & set(_OWN_KEYS))
    if clashing:
        raise DataError(f"sample {sample.id}: columns may not be called {', '.join(clashing)}")
    messages = [message_to_json(message) for message in sample.messages]
    for block in (block for message in messages for block in message["content"]):
        if block["type"] == "image":
            path = Path(block["image"])
            block["image"] = str(path.relative_to(root) if path.is_relative_to(root) else path)
    row = {"id": sample.id, "messages": messages, "ground_truth": sample.ground_truth, "tools": sample.tools}
    try:
        line = json.dumps(row | sample.columns, ensure_ascii=False, allow_nan=False)
        parse_row(line.encode(), root)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"sample {sample.id}: {error}") from error
    return line
