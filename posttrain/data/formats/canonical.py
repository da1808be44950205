"""The canonical format: JSON lines, a sample each, images as files.

    {"id": "7", "messages": [{"role": "user", "content": [{"type": "image", "image": "images/7.png"},
     {"type": "text", "text": "What is it?"}]}, {"role": "assistant", "content": "A cup."}],
     "ground_truth": "cup", "tools": ["image_zoom_in"], "any other column": 1}

Only `messages` is required; a row without an `id` is called after its place, `data.jsonl:7`. Image paths are
relative to the file's folder. Images may also be listed, as `"images": ["images/7.png"]`; each `<image>` in
a text and each block `{"type": "image"}` then takes the next one. Videos are listed and placed in the same
way, as `"videos"`, `<video>` and `{"type": "video"}`: a file, a folder of frames, a list of frames, or an
object, `{"video": "a.mp4", "start": 2, "end": 9.5, "fps": 1}`; of frames it may tell the `frame_rate`.

A text says `<image>` itself where the row shows its images by blocks, in an assistant's or a system's
message, and in a content that is given as blocks.

Preference pairs end `messages` before the turn in question and give it twice, as `chosen` and as
`rejected`: a text, or a list of messages. A tool is the name of one of ours, or a function schema.

A key of a message or a block that is not read, and a turn that says nothing, make a row broken. Other columns
are kept for rewards. One that looks like a part of the dialogue is kept if it stands in an object of its own,
`"columns": {"image_url": …}`; `keep_columns` in the dataset's YAML puts it there.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from posttrain.data.formats.dialogue_checks import check_dialogue, check_pair
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.free_columns import is_suspect, split_columns
from posttrain.data.formats.held import HELD, TOO_LONG, is_held
from posttrain.data.formats.keys import BLOCK_KEYS, MESSAGE_KEYS, SILENT_KEYS, refuse_unread
from posttrain.data.formats.media_paths import image_path, media_path
from posttrain.data.formats.placeholders import place_media
from posttrain.data.formats.row import Row
from posttrain.files.strict_json import JsonError, parse_json
from posttrain.media.suffixes import FRAME_SUFFIXES, VIDEO_SUFFIXES
from posttrain.messages import message_from_json, message_to_json
from posttrain.plugins import is_declared_name
from posttrain.types import Block, ImageRef, Message, Sample, ToolSpec

#: Longest row, in bytes, whose images are files; a dialogue of 256K tokens is about 1 MB.
MAX_ROW_BYTES = 16 * 2**20
#: Keys of a row that are no columns.
OWN_KEYS = ("id", "messages", "images", "videos", "ground_truth", "tools", "chosen", "rejected", "columns")
_OWN = frozenset(OWN_KEYS)
_BOM = b"\xef\xbb\xbf"


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
                    yield parse_row(line, path.parent, f"{path.name}:{number}")
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


def rows(file: BinaryIO, limit: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """Read the lines of a file that are not blank, as (line number from 1, byte offset, bytes).

    A line longer than the limit, `MAX_ROW_BYTES` unless another is given, comes cut to one byte above it, so
    that `parse_line` refuses it.
    """
    number = offset = 0
    limit = MAX_ROW_BYTES if limit is None else limit
    while line := file.readline(limit + 1):
        number += 1
        length, rest = len(line), line
        while not rest.endswith(b"\n") and (rest := file.readline(limit)):
            length += len(rest)
        if line.removeprefix(_BOM).strip():
            yield number, offset, line
        offset += length


def parse_row(line: bytes, folder: Path, name: str = "") -> Sample:
    """Parse a row into a sample.

    Args:
        line: A JSON object in UTF-8.
        folder: What image paths are relative to, and may not leave.
        name: The id of a row that has none.

    Raises:
        DataError: With the reason; the caller knows the file and the line.
    """
    return sample_of(parse_line(line), folder, name)


def parse_line(line: bytes, limit: int | None = None) -> Row:
    """Parse a line into a row of whatever format.

    Args:
        line: A JSON object in UTF-8.
        limit: Most bytes that it has; `MAX_ROW_BYTES` if None.

    Raises:
        DataError: If it is no JSON object in UTF-8, or too long.
    """
    limit = MAX_ROW_BYTES if limit is None else limit
    if len(line) > limit:
        raise DataError(f"{TOO_LONG} {limit:,} bytes")
    try:
        row = parse_json(line.removeprefix(_BOM).decode())
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except JsonError as error:
        raise DataError(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object, got {type(row).__name__}")
    return row


def sample_of(row: Row, folder: Path, name: str = "") -> Sample:
    """Make a sample of a row whose JSON is parsed already; see `parse_row`."""
    name = _id(row.get("id"), name)
    columns = _columns(row)
    turns = place_media(row)
    messages, chosen, rejected = (
        _messages(turns[key], folder, key) for key in ("messages", "chosen", "rejected")
    )
    check_dialogue(messages)
    if chosen or rejected:
        check_pair(messages, chosen, rejected)
    return Sample(name, messages, row.get("ground_truth"), tools_of(row), columns, chosen, rejected)


def _columns(row: Row) -> dict[str, object]:
    """Return the columns for rewards: those that are plainly nothing else, and those declared."""
    plain, _ = split_columns({key: row[key] for key in row if key not in _OWN}, (), "canonical")
    declared = row.get("columns", {})
    if not isinstance(declared, dict):
        raise DataError('"columns" must be an object')
    if twice := declared.keys() & plain.keys():
        raise DataError(f"the column {min(twice)!r} is there twice, on its own and in columns")
    return plain | declared


def _id(written: object, name: str) -> str:
    if written is None and name:
        return name
    if isinstance(written, int) and not isinstance(written, bool):
        return str(written)
    if not isinstance(written, str) or not written:
        raise DataError(f'"id" must be a text or a whole number, got {str(written)[:60]!r}')
    return written


def _messages(rows: list[Row], folder: Path, where: str) -> tuple[Message, ...]:
    try:
        messages = [message_from_json(_known(row, where)) for row in rows]
    except ValueError as error:
        raise DataError(str(error)) from None
    return tuple([_located(message, folder) for message in messages])


def _known(row: Row, where: str) -> Row:
    """Return a message of a column that has no key but those that are read.

    Raises:
        DataError: Naming the key.
    """
    if not row.keys() <= MESSAGE_KEYS:
        noun = f"the message of {str(row.get('role'))[:40]!r}"
        refuse_unread(row, MESSAGE_KEYS | SILENT_KEYS, noun, where, canonical=True)
    content = row.get("content")
    if not isinstance(content, list):
        return row
    for block in content:
        if not isinstance(block, dict):
            continue
        kind = block.get("type")
        if kind == "text" and block.keys() == BLOCK_KEYS["text"]:  # most blocks
            continue
        if isinstance(image := block.get("image"), dict) and image:
            raise DataError(f"{HELD}: {str(block)[:80]!r}")
        read = BLOCK_KEYS.get(kind) if isinstance(kind, str) else None
        if read is not None and not block.keys() <= read:
            refuse_unread(block, read, f"a block of the type {kind}", f"{where}.content", canonical=True)
    return row


def tools_of(row: Row) -> tuple[str | ToolSpec, ...]:
    """Read the tools of a row: names, and function schemas.

    Raises:
        DataError: If they are something else.
    """
    tools = row.get("tools") or []
    if isinstance(tools, str) and tools.startswith("["):
        try:
            tools = parse_json(tools)
        except JsonError as error:
            raise DataError(f'"tools" cannot be read: {error}') from None
    if not isinstance(tools, list):
        raise DataError('"tools" must be a list of names or function schemas')
    return tuple(_tool_name(tool) if isinstance(tool, str) else _tool_spec(tool) for tool in tools)


def _tool_name(name: str) -> str:
    """Refuse what would lead to code of the row's choice: rows come from strangers."""
    if not is_declared_name(name):
        raise DataError(
            f"the tool {name[:80]!r} is not the name of an installed one; write its schema, "
            '{"type": "function", "function": {…}}'
        )
    return name


def _tool_spec(schema: object) -> ToolSpec:
    function = schema.get("function", schema) if isinstance(schema, dict) else None
    if not isinstance(function, dict):
        raise DataError('an entry of "tools" is neither a name nor {"type": "function", "function": {…}}')
    name, parameters = function.get("name"), function.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(name, str) or not name or not isinstance(parameters, dict):
        raise DataError('an entry of "tools" needs a "name", and "parameters" that are an object')
    plain = ToolSpec(name, str(function.get("description") or ""), parameters)
    written = schema if function is not schema else {"type": "function", "function": schema}
    # Compared as text, in which the order of keys and 1.0 for 1 make a difference.
    same = json.dumps(written) == json.dumps(plain.as_openai())
    return plain if same else dataclasses.replace(plain, written=written)


def _located(message: Message, folder: Path) -> Message:
    """Return the same message, with images and videos by absolute path."""
    content = message.content
    if all(block.type == "text" for block in content):
        return message
    located = [block if block.type == "text" else _located_block(block, folder) for block in content]
    return dataclasses.replace(message, content=tuple(located))


def _located_block(block: Block, folder: Path) -> Block:
    if block.region is not None and block.region.image is not None:
        image = ImageRef(_image(block.region.image.path, folder))
        return dataclasses.replace(block, region=dataclasses.replace(block.region, image=image))
    if block.image is not None:
        return Block("image", image=ImageRef(_image(block.image.path, folder), block.image.sha256))
    if block.video is None:
        return block
    paths = [path.removeprefix("file://") for path in block.video.paths]
    one = len(paths) == 1
    if not one and (held := next(filter(is_held, paths), None)):
        raise DataError(f"{HELD}: {held[:40]!r}…")
    noun, suffixes = ("video", VIDEO_SUFFIXES + FRAME_SUFFIXES) if one else ("frame", FRAME_SUFFIXES)
    found = tuple(str(media_path(noun, path, folder, suffixes)) for path in paths)
    return Block("video", video=dataclasses.replace(block.video, paths=found))


def _image(written: str, folder: Path) -> str:
    if is_held(written):
        raise DataError(f"{HELD}: {written[:40]!r}…")
    return str(image_path(written.removeprefix("file://"), folder))


def _row(sample: Sample, root: Path) -> str:
    clashing = sorted(set(sample.columns) & set(OWN_KEYS))
    if clashing:
        raise DataError(f"sample {sample.id}: columns may not be called {', '.join(clashing)}")
    row: Row = {"id": sample.id, "messages": _written(sample.messages, root)}
    row |= {"ground_truth": sample.ground_truth}
    row["tools"] = [tool if isinstance(tool, str) else tool.as_openai() for tool in sample.tools]
    if sample.chosen or sample.rejected:
        row |= {"chosen": _written(sample.chosen, root), "rejected": _written(sample.rejected, root)}
    declared = {name: value for name, value in sample.columns.items() if is_suspect(name, value)}
    row |= {"columns": declared} if declared else {}
    plain = {name: value for name, value in sample.columns.items() if name not in declared}
    try:
        line = json.dumps(row | plain, ensure_ascii=False, allow_nan=False)
        parse_row(line.encode(), root)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"sample {sample.id}: {error}") from error
    return line


def _written(messages: Iterable[Message], root: Path) -> list[Row]:
    """Write messages as JSON, with images and videos inside `root` relative to it."""
    written = [message_to_json(message) for message in messages]
    for block in (block for message in written for block in message["content"]):
        kind = "image" if block["type"] == "region" else block["type"]
        if kind in block and kind != "text":
            paths = block[kind]
            many = isinstance(paths, list)
            block[kind] = [_relative(path, root) for path in paths] if many else _relative(paths, root)
    return written


def _relative(path: str, root: Path) -> str:
    return str(Path(path).relative_to(root) if Path(path).is_relative_to(root) else path)
