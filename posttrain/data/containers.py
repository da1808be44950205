"""Files that rows come in: JSON lines, JSON lists, Parquet, and Hugging Face datasets on disk.

Rows are read one after another, a batch of them in memory at most; images stay encoded.
"""

import datetime
import decimal
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow.parquet

from posttrain.data.formats import DataError, parse_line, rows
from posttrain.data.formats.row import Row
from posttrain.data.row_files import STATE_FILE, data_files, is_hugging_face, split_folders
from posttrain.files.strict_json import JsonError, parse_json

#: Longest text of a row, in bytes, whose images may be in it; each of them has a limit of its own.
MAX_TEXT_BYTES = 256 * 2**20
#: Rows of an Arrow file that are in memory at once; each may hold images.
_BATCH = 64
_CHUNK = 1 << 20
_GAP = re.compile(r"\s*,?\s*")

#: Where a row is, as `file:line`, and the row, or why there is none.
RawRow = tuple[str, Row | DataError]


def raw_rows(path: Path, split: str | None = None) -> Iterator[RawRow]:
    """Read every row of a dataset with its place.

    Raises:
        DataError: If a file cannot be read at all, or a JSON list breaks off.
    """
    if path.is_dir() and is_hugging_face(path):
        for folder in split_folders(path, split):
            yield from _hugging_face_rows(folder)
        return
    for file in data_files(path, split):
        try:
            yield from _file_rows(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{file} cannot be read: {error}") from error


def _file_rows(file: Path) -> Iterator[RawRow]:
    if file.suffix.lower() == ".parquet":
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_BATCH)
        yield from _numbered(file, (row for batch in batches for row in batch.to_pylist()))
    elif file.suffix.lower() == ".json" and _is_list(file):
        yield from _list_rows(file)
    else:
        with file.open("rb") as lines:
            for number, _, line in rows(lines, MAX_TEXT_BYTES):
                try:
                    row = parse_line(line, MAX_TEXT_BYTES)
                except DataError as error:
                    if number == 1 and file.suffix == ".json":
                        _refuse_object(file)
                    yield f"{file}:{number}", error
                    continue
                if number == 1 and file.suffix == ".json":
                    _refuse_wrapped(file, row)
                yield f"{file}:{number}", row


def _refuse_object(file: Path) -> None:
    """Refuse a JSON file that is one object over several lines; not one of JSON lines, the first broken."""
    if file.stat().st_size > MAX_TEXT_BYTES:
        return
    try:
        found = parse_json(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, JsonError):
        return
    if isinstance(found, dict):
        raise DataError(
            f"{file} is one object, with the keys {_first(found)}, and no list of rows; write the rows as one"
            " list, [{…}, {…}], or one on each line"
        )


def _refuse_wrapped(file: Path, row: Row) -> None:
    """Refuse a JSON file whose first line is one object that holds the rows under a key."""
    held = next((key for key, value in row.items() if len(row) < 4 and _are_rows(value)), None)
    if held is not None:
        raise DataError(
            f"{file} is one object that has its rows under the key {held!r}; write them as one list,"
            " [{…}, {…}], or one on each line"
        )


def _are_rows(value: object) -> bool:
    """Tell whether a value is a list of rows rather than of messages, tools or other parts of one."""
    names = {"messages", "conversations", "prompt", "query", "instruction", "problem", "chosen"}
    rows = value if isinstance(value, list) else []
    return bool(rows) and all(isinstance(row, dict) and names & row.keys() for row in rows)


def _first(found: Row) -> str:
    return ", ".join(repr(key) for key in list(found)[:8])


def _hugging_face_rows(folder: Path) -> Iterator[RawRow]:
    """Read a Hugging Face dataset by Arrow; its own library loads slowly, and would decode every image."""
    try:
        state = parse_json((folder / STATE_FILE).read_text(encoding="utf-8"))
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (OSError, UnicodeDecodeError, JsonError, KeyError, TypeError) as error:
        raise DataError(f"{folder} cannot be read: {error!r}") from error
    yield from _numbered(folder, (row for file in files for row in _arrow_rows(file)))


def _arrow_rows(file: Path) -> Iterator[Row]:
    try:
        with pyarrow.memory_map(str(file)) as opened, pyarrow.ipc.open_stream(opened) as batches:
            for batch in batches:
                for start in range(0, batch.num_rows, _BATCH):
                    yield from batch.slice(start, _BATCH).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _numbered(path: Path, values: Iterator[Row]) -> Iterator[RawRow]:
    for number, row in enumerate(values, start=1):
        yield f"{path}:{number}", _plain_row(row)


def _plain_row(row: Row) -> Row:
    """Return an object of Arrow's as JSON has it.

    Arrow gives every object every key that any of them has; those that are null were not there.
    """
    return {key: _plain(item) for key, item in row.items() if item is not None}


def _plain(value: object) -> object:
    """Return a value of Arrow's as JSON has it; bytes stay, for images."""
    if isinstance(value, dict):
        return _plain_row(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return float(value) if isinstance(value, decimal.Decimal) else value


def _is_list(file: Path) -> bool:
    """Tell whether a JSON file holds one list; many files with this suffix hold JSON lines."""
    with file.open("rb") as opened:
        return opened.read(_CHUNK).lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"[")


def _list_rows(file: Path) -> Iterator[RawRow]:
    """Read the objects of a JSON list, one in memory at a time; a place is `file:number`."""
    with file.open(encoding="utf-8-sig") as opened:
        try:
            for number, text in enumerate(_items(opened), start=1):
                try:
                    row = parse_json(text)
                except JsonError as error:
                    yield f"{file}:{number}", DataError(f"not valid JSON: {error}")
                    continue
                yield f"{file}:{number}", row if isinstance(row, dict) else DataError(_no_row(row))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{file} is no JSON list: {error}") from error


def _no_row(value: object) -> str:
    packed = isinstance(value, list) and all(isinstance(row, dict) for row in value)
    several = (
        "; it is a list of rows, as packed data has them: write each as a row of its own" if packed else ""
    )
    return f"a row must be an object, got {type(value).__name__}{several}"


def _items(file: IO[str]) -> Iterator[str]:
    """Cut the text of a JSON list into those of its entries.

    Raises:
        JSONDecodeError: Where the list breaks off, or an entry is longer than a row may be.
    """
    decoder, ended = json.JSONDecoder(), False
    text = file.read(_CHUNK)
    number, position = 0, text.index("[") + 1
    while True:
        position += len(_GAP.match(text, position)[0])  # pyright: ignore[reportOptionalSubscript]
        if text.startswith("]", position):
            return
        reason = "it breaks off"
        try:
            end = decoder.raw_decode(text, position)[1]
        except (json.JSONDecodeError, RecursionError) as error:
            end, reason = len(text), getattr(error, "msg", "it is nested too deeply")
        if end < len(text):  # what reaches the end may go on in the next chunk
            yield text[position:end]
            number, position = number + 1, end
            continue
        if ended or len(text) - position > MAX_TEXT_BYTES:
            raise json.JSONDecodeError(f"entry {number + 1}: {reason}", text[position : position + 80], 0)
        more = file.read(max(_CHUNK, len(text) - position))
        ended = not more
        text, position = text[position:] + more, 0
