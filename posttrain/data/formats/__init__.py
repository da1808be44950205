"""Forms of rows: the canonical one, and those of other tools, which are read into it."""

from collections.abc import Callable, Mapping
from functools import partial

from posttrain.config.data import FORMAT_COLUMNS
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
from posttrain.data.formats.dialogues import read_tools, read_videos
from posttrain.data.formats.easyr1 import read_easyr1
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.llama_factory import entry_of, read_alpaca, read_qwen, read_sharegpt
from posttrain.data.formats.media_paths import image_path
from posttrain.data.formats.ms_swift import read_ms_swift
from posttrain.data.formats.openai import read_openai
from posttrain.data.formats.row import Row
from posttrain.data.formats.trl import read_trl

__all__ = [
    "MAX_ROW_BYTES",
    "OWN_KEYS",
    "DataError",
    "canonical_row",
    "entry_of",
    "image_path",
    "parse_line",
    "parse_row",
    "read_canonical",
    "rows",
    "sample_of",
    "write_canonical",
]


def canonical_row(
    row: Row,
    format_name: str,
    columns: Mapping[str, str | None] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Row:
    """Rewrite a row of any format in the canonical form, images as the row has them, videos by path.

    Args:
        row: The row; it is not changed.
        format_name: One of `posttrain.config.data.FORMAT_COLUMNS`.
        columns: Where columns of the format are found under other names; dots lead into objects.
        tags: Keys and roles of sharegpt turns.

    Returns:
        The canonical row; without an `id` where the row has none.

    Raises:
        DataError: If it is no such row.

    Example:
        canonical_row({"question": "2+2?", "answer": "4"}, "easyr1", {"problem": "question"})
    """
    known, free = _mapped(row, format_name, columns or {})
    read: dict[str, Callable[[Row], Row]] = {
        "canonical": dict,
        "ms_swift": read_ms_swift,
        "sharegpt": partial(read_sharegpt, tags=tags or {}),
        "qwen": partial(read_qwen, tags=tags or {}),
        "alpaca": read_alpaca,
        "trl": read_trl,
        "openai": read_openai,
        "easyr1": read_easyr1,
    }
    common = {"tools": read_tools(known.get("tools")), "videos": read_videos(known)}
    canonical = common | read[format_name](known) | {"videos": common["videos"]}
    if clashing := sorted(set(free) & set(OWN_KEYS)):
        raise DataError(f"the format {format_name} has no column {clashing[0]!r}; drop it by drop_columns")
    if known.get("ground_truth") is not None:
        canonical["ground_truth"] = known["ground_truth"]
    if known.get("id") is not None:
        canonical["id"] = str(known["id"])
    return {key: value for key, value in canonical.items() if value not in (None, [])} | free


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
