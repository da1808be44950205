"""The canonical format: JSON lines, a sample each, images as files.

    {"id": "7", "messages": [{"role": "user", "content": [{"type": "image", "image": "images/7.png"},
     {"type": "text", "text": "What is it?"}]}, {"role": "assistant", "content": "A cup."}],
     "ground_truth": "cup", "tools": ["image_zoom_in"], "any other column": 1}

Only `messages` is required; a row without an `id` is called after its place, `data.jsonl:7`. Image paths are
relative to the file's folder. Images may also be listed, as `"images": ["images/7.png"]`; each `<image>` in
a text and each block `{"type": "image"}` then takes the next one. Videos are listed and placed in the same
way, as `"videos"`, `<video>` and `{"type": "video"}`: a file, a folder of frames, a list of frames, or an
object, `{"video": "a.mp4", "start": 2, "end": 9.5, "fps": 1}`; of frames it may tell the `frame_rate`.

Preference pairs end `messages` before the turn in question and give it twice, as `chosen` and as
`rejected`: a text, or a list of messages. A tool is the name of one of ours, or a function schema.
"""

import dataclasses
import json
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from posttrain.data.formats.errors import DataError
from posttrain.data.formats.placeholders import PLACEHOLDERS, place_media
from posttrain.data.formats.row import Row
from posttrain.files.strict_json import JsonError, parse_json
from posttrain.media.suffixes import FRAME_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from posttrain.messages import message_from_json, message_to_json
from posttrain.plugins import is_declared_name
from posttrain.types import Block, ImageRef, Message, Sample, ToolSpec

#: Longest row, in bytes; a dialogue of 256K tokens is about 1 MB.
MAX_ROW_BYTES = 16 * 2**20
#: Keys of a row that are no columns.
OWN_KEYS = ("id", "messages", "images", "videos", "ground_truth", "tools", "chosen", "rejected")


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


def rows(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Read the lines of a file that are not blank, as (line number from 1, byte offset, bytes).

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


def parse_line(line: bytes) -> Row:
    """Parse a line into a row of whatever format.

    Raises:
        DataError: If it is no JSON object in UTF-8, or too long.
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
    return row


def sample_of(row: Row, folder: Path, name: str = "") -> Sample:
    """Make a sample of a row whose JSON is parsed already; see `parse_row`."""
    name = _id(row.get("id"), name)
    turns = place_media(row)
    messages = _messages(turns["messages"], folder)
    chosen, rejected = _messages(turns["chosen"], folder), _messages(turns["rejected"], folder)
    _check_dialogue(messages)
    if chosen or rejected:
        _check_pair(messages, chosen, rejected)
    columns = {key: value for key, value in row.items() if key not in OWN_KEYS}
    return Sample(name, messages, row.get("ground_truth"), _tools(row), columns, chosen, rejected)


def _id(written: object, name: str) -> str:
    if written is None and name:
        return name
    if isinstance(written, int) and not isinstance(written, bool):
        return str(written)
    if not isinstance(written, str) or not written:
        raise DataError(f'"id" must be a text or a whole number, got {str(written)[:60]!r}')
    return written


def image_path(written: str, folder: Path) -> Path:
    """Find a row's image; nothing is opened.

    Raises:
        DataError: If it is a URL, does not exist, is no regular file with an image's suffix, or a relative
            path leads out of the folder, by `..` or by a symbolic link.
    """
    return _media_path("image", written, folder, IMAGE_SUFFIXES)


def _media_path(noun: str, written: str, folder: Path, suffixes: tuple[str, ...]) -> Path:
    """Find an image or a video as `image_path` does; a folder of frames is a video as well."""
    if "://" in written or written.startswith("data:"):
        raise DataError(f"{noun} {written[:200]!r} is a URL; download it and give its path")
    root = folder.resolve()
    try:
        path = (root / written).resolve(strict=True)
        kind = path.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that go in a circle
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{noun} {written[:200]!r} cannot be found: {reason}") from None
    if not Path(written).is_absolute() and not path.is_relative_to(root):
        raise DataError(f"{noun} {written[:200]!r} leads out of {root}; move it there")
    if noun == "video" and stat.S_ISDIR(kind):
        return path
    if not stat.S_ISREG(kind):
        raise DataError(f"{noun} {written[:200]!r} is not a regular file")
    if path.suffix.lower() not in suffixes:
        raise DataError(f"{noun} {written[:200]!r} must end in one of {', '.join(suffixes)}")
    return path


def _messages(rows: list[Row], folder: Path) -> tuple[Message, ...]:
    try:
        messages = [message_from_json(row) for row in rows]
    except ValueError as error:
        raise DataError(str(error)) from None
    return tuple(
        dataclasses.replace(message, content=_located(message.content, folder)) for message in messages
    )


def _tools(row: Row) -> tuple[str | ToolSpec, ...]:
    tools = row.get("tools", [])
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


def _located(blocks: tuple[Block, ...], folder: Path) -> tuple[Block, ...]:
    """Return the same blocks, with images and videos by absolute path."""
    return tuple(_located_block(block, folder) for block in blocks)


def _located_block(block: Block, folder: Path) -> Block:
    if block.image is not None:
        return Block("image", image=ImageRef(str(image_path(block.image.path, folder)), block.image.sha256))
    if block.video is None:
        return block
    paths = block.video.paths
    one = len(paths) == 1
    noun, suffixes = ("video", VIDEO_SUFFIXES + FRAME_SUFFIXES) if one else ("frame", FRAME_SUFFIXES)
    found = tuple(str(_media_path(noun, path, folder, suffixes)) for path in paths)
    return Block("video", video=dataclasses.replace(block.video, paths=found))


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
    for kind, placeholder in PLACEHOLDERS.items():
        if any(placeholder in message.text for message in messages):
            raise DataError(
                f'a text says "{placeholder}" and the row has no {kind} for it; list its path in "{kind}s",'
                f" or put a block of the type {kind} in its place"
            )


def _check_pair(
    messages: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> None:
    """Refuse what is no choice between two replies to one prompt."""
    if messages[-1].role not in ("user", "tool"):
        raise DataError('the "messages" of a preference pair end with the prompt, before the replies')
    for key, reply in (("chosen", chosen), ("rejected", rejected)):
        if not reply or reply[0].role != "assistant" or reply[-1].role != "assistant":
            raise DataError(f'"{key}" must begin and end with an assistant\'s turn')
        _check_dialogue((*messages, *reply))
    if chosen == rejected:
        raise DataError('"chosen" and "rejected" are the same')


def _row(sample: Sample, root: Path) -> str:
    clashing = sorted(set(sample.columns) & set(OWN_KEYS))
    if clashing:
        raise DataError(f"sample {sample.id}: columns may not be called {', '.join(clashing)}")
    row: Row = {"id": sample.id, "messages": _written(sample.messages, root)}
    row |= {"ground_truth": sample.ground_truth}
    row["tools"] = [tool if isinstance(tool, str) else tool.as_openai() for tool in sample.tools]
    if sample.chosen or sample.rejected:
        row |= {"chosen": _written(sample.chosen, root), "rejected": _written(sample.rejected, root)}
    try:
        line = json.dumps(row | sample.columns, ensure_ascii=False, allow_nan=False)
        parse_row(line.encode(), root)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"sample {sample.id}: {error}") from error
    return line


def _written(messages: Iterable[Message], root: Path) -> list[Row]:
    """Write messages as JSON, with images and videos inside `root` relative to it."""
    written = [message_to_json(message) for message in messages]
    for block in (block for message in written for block in message["content"]):
        kind = block["type"]
        if kind != "text":
            paths = block[kind]
            many = isinstance(paths, list)
            block[kind] = [_relative(path, root) for path in paths] if many else _relative(paths, root)
    return written


def _relative(path: str, root: Path) -> str:
    return str(Path(path).relative_to(root) if Path(path).is_relative_to(root) else path)
