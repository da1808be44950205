"""Forms of rows: the canonical one, and those of other tools, which are read into it."""

from collections.abc import Callable, Collection, Mapping
from functools import partial

from posttrain.config.data import FORMAT_COLUMNS
from posttrain.data.formats.blocks import as_list, read_videos
from posttrain.data.formats.canonical import (
    MAX_ROW_BYTES,
    OWN_KEYS,
    parse_line,
    parse_row,
    read_canonical,
    rows,
    sample_of,
    write_canonical,
)
from posttrain.data.formats.dialogue_checks import says_nothing
from posttrain.data.formats.dialogues import read_tools, with_system
from posttrain.data.formats.easyr1 import read_easyr1
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.free_columns import split_columns
from posttrain.data.formats.held import REWRITTEN, is_held
from posttrain.data.formats.keys import is_empty
from posttrain.data.formats.llama_factory import entry_of, read_alpaca, read_qwen, read_sharegpt
from posttrain.data.formats.media_paths import image_path
from posttrain.data.formats.ms_swift import read_ms_swift
from posttrain.data.formats.openai import read_openai
from posttrain.data.formats.placeholders import json_messages
from posttrain.data.formats.row import Row
from posttrain.data.formats.trl import read_trl

__all__ = [
    "MAX_ROW_BYTES",
    "OWN_KEYS",
    "REWRITTEN",
    "DataError",
    "canonical_row",
    "entry_of",
    "image_path",
    "is_held",
    "parse_line",
    "parse_row",
    "read_canonical",
    "rows",
    "sample_of",
    "says_nothing",
    "write_canonical",
]


def canonical_row(
    row: Row,
    format_name: str,
    columns: Mapping[str, str | None] | None = None,
    tags: Mapping[str, str] | None = None,
    kept: Collection[str] = (),
) -> Row:
    """Rewrite a row of any format in the canonical form, images as the row has them, videos by path.

    Args:
        row: The row; it is not changed.
        format_name: One of `posttrain.config.data.FORMAT_COLUMNS`.
        columns: Where columns of the format are found under other names; dots lead into objects.
        tags: Keys and roles of sharegpt turns.
        kept: Columns for rewards that look like a part of the dialogue.

    Returns:
        The canonical row; without an `id` where the row has none.

    Raises:
        DataError: If it is no such row, or has a key or a column that nobody reads.

    Example:
        canonical_row({"question": "2+2?", "answer": "4"}, "easyr1", {"problem": "question"})
    """
    known, free = _mapped(row, format_name, columns or {})
    read: dict[str, Callable[[Row], Row]] = {
        "canonical": _read_canonical,
        "ms_swift": read_ms_swift,
        "sharegpt": partial(read_sharegpt, tags=tags or {}),
        "qwen": partial(read_qwen, tags=tags or {}),
        "alpaca": read_alpaca,
        "trl": read_trl,
        "openai": read_openai,
        "easyr1": read_easyr1,
    }
    common = _common(known) if format_name != "canonical" else {}
    canonical = common | read[format_name](known | common)
    if common:
        canonical["messages"] = with_system(known.get("system"), canonical["messages"])
    if clashing := sorted(set(free) & set(OWN_KEYS) - {"columns"}):
        raise DataError(f"the format {format_name} has no column {clashing[0]!r}; drop it by drop_columns")
    plain, declared = split_columns(free, kept, format_name)
    if "columns" in plain:
        declared["columns"] = plain.pop("columns")
    own = canonical.pop("columns", None) or {}
    if not isinstance(own, dict):
        raise DataError('"columns" must be an object')
    declared = own | declared
    for key, value in (("ground_truth", known.get("ground_truth")), ("columns", declared or None)):
        canonical |= {} if value is None else {key: value}
    if format_name != "canonical" and known.get("id") is not None:
        canonical["id"] = str(known["id"])
    return {key: value for key, value in canonical.items() if value not in (None, [])} | plain


def _read_canonical(row: Row) -> Row:
    """Read messages that are JSON in a text; all else is as it should be."""
    texts = {key: row[key] for key in ("messages", "chosen", "rejected") if isinstance(row.get(key), str)}
    return row | {key: json_messages(str(text)) or text for key, text in texts.items()}


#: Columns that other tools call otherwise, and how each is read.
_OTHER_NAMES = {"images": ("images", "image"), "videos": ("videos", "video")}
_OTHER_NAMES |= {"tools": ("tools", "functions", "tool_defs")}


def _common(known: Row) -> Row:
    """Return the images, videos and tools of a row, by whichever name it has them.

    Raises:
        DataError: If it has different ones by two names.
    """
    found: Row = {}
    for key, names in _OTHER_NAMES.items():
        given = {name: known[name] for name in names if not is_empty(known.get(name))}
        values = list(map(as_list, given.values()))
        if any(value != values[0] for value in values[1:]):
            raise DataError(
                f"the row has {' and '.join(given)}, which differ; keep one of them by drop_columns"
            )
        found[key] = next(iter(given.values()), None)
    return {
        "images": as_list(found["images"]),
        "tools": read_tools(found["tools"]),
        "videos": read_videos(found),
    }


def _mapped(row: Row, format_name: str, columns: Mapping[str, str | None]) -> tuple[Row, Row]:
    """Return the columns that the format reads, by its names for them, and all others."""
    names = FORMAT_COLUMNS[format_name]
    taken = {path.partition(".")[0] for path in columns.values() if path is not None}
    known = {name: row[name] for name in names if name in row and name not in taken | set(columns)}
    for name, path in columns.items():
        if path is not None and (value := _found(row, path)) is not None:
            known[name] = value
    free = {key: value for key, value in row.items() if key not in known and key not in taken}
    if "id" in columns and columns["id"] is None:
        free.pop("id", None)
    return known, free


def _found(row: Row, path: str) -> object:
    """Return what is at a dotted path, or None; a column whose own name has dots comes first."""
    if path in row:
        return row[path]
    value: object = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
