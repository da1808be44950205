"""Data of any format and container, rewritten once as canonical JSON lines in the cache.

Rows then come one at a time from one file, however they were stored, and what is held of each is a few bytes.
Beside the lines lie the images that rows held themselves, where each line came from, and what was left out.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from posttrain.config import DatasetConfig
from posttrain.config.data import FilterConfig
from posttrain.data.containers import raw_rows
from posttrain.data.embedded_images import EmbeddedImages
from posttrain.data.formats import DataError, canonical_row, entry_of, sample_of
from posttrain.data.formats.media_paths import begin_at
from posttrain.data.formats.placeholders import json_messages
from posttrain.data.formats.row import Row
from posttrain.data.row_files import data_files, not_there
from posttrain.files.durable import sync
from posttrain.files.progress import progress_bar
from posttrain.files.strict_json import JsonError, parse_json
from posttrain.types import Sample

DATA, PLACES, LEFT_OUT = "data.jsonl", "places.txt", "left_out.json"
#: To be changed when the rewritten rows are others; a part of their folder's name.
_FORMAT = "0.2.0"


@dataclass(frozen=True)
class Source:
    """Where the rows of a dataset are and how to read them.

    Attributes:
        path: A file or a folder.
        config: The dataset's YAML, with what a dataset_info.json says put in its place.
        image_root: What image paths are relative to.
    """

    path: Path
    config: DatasetConfig
    image_root: Path

    @property
    def as_it_stands(self) -> bool:
        """Whether the file is canonical JSON lines already, and nothing is asked of its rows."""
        return self.config.as_it_stands and self.path.is_file() and self.path.suffix == ".jsonl"

    def identity(self) -> str:
        """Return a digest of all that the rewritten file depends on; another version of a file changes it."""
        files = data_files(self.path, self.config.source.split)
        # The later of both times: restoring the time of a file's contents does not hide that it was written.
        stamps = [
            (str(file), status.st_size, max(status.st_mtime_ns, status.st_ctime_ns))
            for file in files
            if (status := file.stat())
        ]
        read = {"format", "columns", "tags", "drop_columns", "keep_columns", "filters"}
        settings = self.config.model_dump(include=read)
        images = None if self.config.source.images is None else str(self.image_root)
        whole = json.dumps([_FORMAT, stamps, settings, self.config.source.split, images], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()


@dataclass(frozen=True)
class LeftOut:
    """What preparing left out.

    Attributes:
        broken: (place, reason) of rows that could not be read.
        filtered: Number of rows that each filter removed, in the order of the filters.
    """

    broken: list[tuple[str, str]]
    filtered: list[int]


def locate(config: DatasetConfig, base_dir: Path) -> Source:
    """Find the rows of a dataset that has a path.

    Raises:
        DataError: If there is nothing at the path, or dataset_info.json does not tell of the entry.
    """
    path = base_dir / str(config.source.path)
    if not path.exists():
        raise not_there(str(config.source.path), path)
    if config.source.entry is not None:
        path, config = _from_dataset_info(path, config)
    folder = path if path.is_dir() else path.parent
    images = config.source.images
    return Source(path, config, base_dir / images if images is not None else folder)


def prepare(source: Source, folder: Path, final: Path) -> None:
    """Write a source's rows as canonical JSON lines, and what goes with them.

    Args:
        source: The rows.
        folder: Where to; it exists.
        final: The name that the folder will have afterwards.

    Raises:
        DataError: If the rows cannot be read, or a filter's column is in no row.
    """
    images = EmbeddedImages(folder / "images", final / "images")
    filters = source.config.filters
    filtered, seen = [0] * len(filters), [False] * len(filters)
    broken: list[tuple[str, str]] = []
    with (folder / DATA).open("w", encoding="utf-8") as data, (folder / PLACES).open("w") as places:
        found, ids = raw_rows(source.path, source.config.source.split), _Ids(source)
        for place, raw in progress_bar(f"rewriting {source.path.name}", found):
            try:
                row = _placed(_canonical(raw, place, source, ids), place, source, images)
                line = json.dumps(row, allow_nan=False)
            except (DataError, TypeError, ValueError, RecursionError) as error:
                broken.append((place, str(error)))
                continue
            values = [_value(row, each.column) for each in filters]
            seen = [was or value is not None for was, value in zip(seen, values, strict=True)]
            failed = next((i for i, each in enumerate(filters) if not passes(each, values[i])), None)
            if failed is not None:
                filtered[failed] += 1
                continue
            data.write(line + "\n")
            places.write(place.replace("\n", " ") + "\n")
    for each, was in zip(filters, seen, strict=True):
        if not was and any(filtered):
            raise DataError(f"filters: no row has a column {each.column!r}; correct its name")
    (folder / LEFT_OUT).write_text(json.dumps({"broken": broken, "filtered": filtered}), encoding="utf-8")
    for name in (DATA, PLACES, LEFT_OUT):
        sync(folder / name)


@dataclass(frozen=True)
class FirstRow:
    """A row as it is found when the beginning of a dataset is looked at.

    Attributes:
        place: Where it is, as `file:line`.
        sample: What it says; None if it is broken, or a filter removes it.
        error: Why it is broken; "" if it is not.
    """

    place: str
    sample: Sample | None = None
    error: str = ""


def first_rows(config: DatasetConfig, count: int) -> Iterator[FirstRow]:
    """Read the beginning of a dataset that has a path, without preparing all of it.

    Images that rows hold themselves are on disk only while the rows are being gone through.

    Args:
        config: The dataset; its path is absolute.
        count: Most rows that are read, those that are broken or filtered included.

    Raises:
        DataError: If it cannot be read at all.
    """
    source = locate(config, Path())
    ids = _Ids(source)
    with tempfile.TemporaryDirectory() as folder:
        images = EmbeddedImages(Path(folder), Path(folder))
        for place, raw in itertools.islice(raw_rows(source.path, source.config.source.split), count):
            try:
                row = _placed(_canonical(raw, place, source, ids), place, source, images)
                if all(passes(each, _value(row, each.column)) for each in source.config.filters):
                    yield FirstRow(place, sample_of(row, source.image_root))
                else:
                    yield FirstRow(place)
            except DataError as reason:
                yield FirstRow(place, error=str(reason))


def read_left_out(folder: Path) -> LeftOut:
    """Read what `prepare` left out."""
    stored = json.loads((folder / LEFT_OUT).read_text(encoding="utf-8"))
    return LeftOut([(place, reason) for place, reason in stored["broken"]], stored["filtered"])


def passes(test: FilterConfig, value: object) -> bool:
    """Tell whether a filter keeps a row by a value of its; None, and a value of another kind, do not pass."""
    if value is None:
        return False
    if test.equals is not None and not _same(value, test.equals):
        return False
    if test.one_of is not None and not any(_same(value, other) for other in test.one_of):
        return False
    if test.min is not None or test.max is not None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        if not (test.min is None or value >= test.min) or not (test.max is None or value <= test.max):
            return False
    if test.min_length is None and test.max_length is None:
        return True
    if not isinstance(value, str | list):
        return False
    return (test.min_length or 0) <= len(value) and (test.max_length is None or len(value) <= test.max_length)


class _Ids:
    """Gives rows the names of their places where their own are no names, or other rows' as well.

    Of canonical rows a name that is there twice is a mistake, which the check of the rows finds.
    """

    def __init__(self, source: Source):
        """Know where rows are named from.

        Args:
            source: The rows.
        """
        self._root = source.path if source.path.is_dir() else source.path.parent
        self._are_ours = source.config.format == "canonical"
        self._taken: set[object] = set()

    def name(self, row: Row, place: str) -> Row:
        """Return a row with a name that no earlier one has."""
        place = place.removeprefix(f"{self._root}/")
        if self._are_ours:
            return {"id": place} | row
        name = row.get("id", place)
        name = place if name in self._taken else name
        self._taken.add(name)
        return {"id": place} | row | {"id": name}


def _canonical(raw: Row | DataError, place: str, source: Source, ids: _Ids) -> Row:
    if isinstance(raw, DataError):
        raise raw
    config = source.config
    kept = raw
    for column in config.drop_columns:
        kept = _without(kept, _as_in_the_row(column, config.columns))
    row = canonical_row(kept, config.format, config.columns, config.tags, config.keep_columns)
    return ids.name(row, place)


def _as_in_the_row(column: str, columns: Mapping[str, str | None]) -> str:
    """Return where rows have what a name with dots leads to, whose first part may be a format's column."""
    name, dot, rest = column.partition(".")
    found = columns.get(name) if dot else None
    return column if found is None else f"{found}.{rest}"


def _without(row: Row, column: str) -> Row:
    """Return a row without a column, or without what dots in its name lead to, in lists in each entry."""
    if column in row:
        return {key: value for key, value in row.items() if key != column}
    name, dot, rest = column.partition(".")
    value = row.get(name)
    if not dot or value is None:
        return row
    if isinstance(value, str) and (messages := json_messages(value)) is not None:
        value = messages
    if isinstance(value, dict):
        return row | {name: _without(value, rest)}
    if isinstance(value, list):
        return row | {name: [_without(item, rest) if isinstance(item, dict) else item for item in value]}
    return row


def _placed(row: Row, place: str, source: Source, images: EmbeddedImages) -> Row:
    """Return a canonical row whose images are files, those that it holds and those that it names."""
    placed = images.place_all(row)
    if source.config.source.images is None:
        return placed
    folder = Path(place.rpartition(":")[0]).parent.resolve()  # of the file that the row was read from
    return begin_at(placed, folder, source.image_root.resolve())


def _value(row: Row, column: str) -> object:
    """Return what a filter looks at: a column, or the texts, images, videos or messages of the dialogue."""
    if column not in ("prompt", "response", "messages", "images", "videos"):
        declared = row.get("columns")
        return row.get(column, declared.get(column) if isinstance(declared, dict) else None)
    chosen = row.get("chosen")
    reply: Row = {"role": "assistant", "content": chosen}
    replies = [reply] if isinstance(chosen, str) else chosen
    parts = [part for part in (row.get("messages"), replies) if isinstance(part, list)]
    messages = [message for part in parts for message in part if isinstance(message, dict)]
    if column == "messages":
        return messages
    if column in ("images", "videos"):
        listed, kind = row.get(column), column.removesuffix("s")
        shown = [block for message in messages for block in _blocks(message) if kind in block]
        return [*listed, *shown] if isinstance(listed, list) else shown
    spoken = [
        message for message in messages if (message.get("role") == "assistant") == (column == "response")
    ]
    return "".join(str(block.get("text") or "") for message in spoken for block in _blocks(message))


def _blocks(message: Row) -> list[Row]:
    content = message.get("content")
    blocks = content if isinstance(content, list) else [{"text": content}]
    return [block for block in blocks if isinstance(block, dict)]


def _same(value: object, other: object) -> bool:
    """Compare two values; `True` is not the same as 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _from_dataset_info(path: Path, config: DatasetConfig) -> tuple[Path, DatasetConfig]:
    """Return the file, and the config with what dataset_info.json says of it."""
    path = path / "dataset_info.json" if path.is_dir() else path
    try:
        info = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, JsonError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    entry = entry_of(info, str(config.source.entry))
    stated = config.model_dump(exclude_defaults=True)
    stated["source"] = {key: value for key, value in stated["source"].items() if key != "entry"}
    for key in ("format", "columns", "tags"):
        stated[key] = entry[key]
    try:
        return path.parent / entry["file_name"], DatasetConfig.model_validate(stated)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise DataError(f"{path}: {config.source.entry}: {reasons}") from error
