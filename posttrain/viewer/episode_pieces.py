"""The episodes of a run in pieces that a page can load one by one, without a server.

A browser that opens a page from a disk may run scripts beside it, and read nothing else. So each file of
`rollouts/` becomes a script that hands over its rows, compressed; and an index of all episodes, a few figures
each, becomes another, by which the page filters and finds them.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from math import isnan
from pathlib import Path

from tqdm import tqdm

from posttrain.files.durable import write_atomic
from posttrain.files.strict_json import Json, JsonObject
from posttrain.run.rows import EpisodeRow, numbered_rows
from posttrain.run.token_figures import TurnFigures, read_token_figures, token_figures_of
from posttrain.viewer.cards import outcome_of
from posttrain.viewer.zoom import zoom_box

#: Folder of the pieces, beside the page.
FOLDER = "episodes"
#: What is known of the files that have been read already.
_SEEN = "seen.json"
#: A file of rows is not read again while its size and time are those that were seen; another form is.
_FORM = 2
_QUICK = 5  # of gzip's levels: half a second for 10 MB


@dataclass(frozen=True)
class Entry:
    """What the index says of an episode.

    Attributes:
        line: Of its file, from 1.
        stage, step, task, sample, group, episode: Where it belongs; step 0 is an evaluation.
        total: Sum of its rewards; None where it was not scored.
        outcome: `right`, `wrong` or `trouble` (see `outcome_of`).
        stop: Why it ended.
        calls, failed: Tool calls, and those of them that were not served.
        tokens: Its length.
        advantage: Relative to its group.
    """

    line: int
    stage: str
    step: int
    task: str
    sample: str
    group: int
    episode: int
    total: float | None
    outcome: str
    stop: str
    calls: int
    failed: int
    tokens: int | None
    advantage: float | None


COLUMNS = tuple(field.name for field in fields(Entry))
#: Columns whose texts repeat, which are sent once and then by number.
TEXTS = ("stage", "task", "sample", "outcome", "stop")


@dataclass(frozen=True)
class Piece:
    """A file of episodes that has been read.

    Attributes:
        file: Relative to the run's directory.
        size, modified: Of the file together with that of its tokens' figures, as they were read.
        broken: How many of its lines cannot be read.
        entries: Its episodes.
    """

    file: str
    size: int
    modified: int
    broken: int
    entries: list[Entry]

    @property
    def name(self) -> str:
        """Name of the piece, of letters and digits whatever the file is called."""
        return hashlib.sha256(self.file.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def script(self) -> str:
        """Name of its script in the folder of pieces."""
        return f"{self.name}.js"


def write_pieces(run: Path, files: Sequence[Path]) -> int:
    """Write the pieces of a run's rollout files and their index; return the number of episodes.

    A file that has not changed since the last time is not read again.

    Args:
        run: The run's directory.
        files: The files, in the order in which the page shows them.

    Raises:
        DiskFull: If there is no space.
    """
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    seen = {piece.file: piece for piece in _read_seen(folder / _SEEN)}
    pieces: list[Piece] = []
    for path in tqdm(files, "episodes", unit=" files", disable=None, leave=False):
        new = Piece(path.relative_to(run).as_posix(), *_stamp(path), 0, [])
        old = seen.get(new.file, new)
        unchanged = (old.size, old.modified) == (new.size, new.modified)
        known = old is not new and unchanged and (folder / old.script).is_file()
        pieces.append(old if known else _write_piece(folder, path, new))
    for gone in seen.keys() - {piece.file for piece in pieces}:
        (folder / seen[gone].script).unlink(missing_ok=True)
    write_atomic(folder / _SEEN, json.dumps({"form": _FORM, "pieces": [astuple(each) for each in pieces]}))
    write_atomic(folder / "index.js", script("index", _index(pieces)))
    return sum(len(piece.entries) for piece in pieces)


def script(name: str, content: object) -> str:
    """Return a script that hands a value to the page: JSON, compressed, in letters that end no string."""
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError:  # a right answer may be no number, which JSON does not have
        text = json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None))
    data = gzip.compress(text.encode(), _QUICK, mtime=0)
    return f'posttrain.take("{name}", "{base64.b64encode(data).decode()}")\n'


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes where a file, or that of its tokens' figures, does: size and time."""
    present = [each.stat() for each in (path, token_figures_of(path)) if each.is_file()]
    return sum(each.st_size for each in present), max(each.st_mtime_ns for each in present)


def _write_piece(folder: Path, path: Path, piece: Piece) -> Piece:
    """Write the rows of a file as a script; return the piece with its entries."""
    broken: list[str] = []
    rows = list(numbered_rows(path, EpisodeRow, lambda _, reason: broken.append(reason)))
    figures: dict[int, list[Json]] = {}
    for turn in [] if broken else read_token_figures(path):  # by the number of the row, which has to be known
        figures.setdefault(turn.row, []).append(_figures(turn))
    shown = [
        row.to_json() | {"tokens": figures.get(number, []), "boxes": _boxes(row)}
        for number, (_, row) in enumerate(rows)
    ]
    write_atomic(folder / piece.script, script(piece.name, shown))
    return replace(piece, broken=len(broken), entries=[_entry(line, row) for line, row in rows])


def _figures(turn: TurnFigures) -> JsonObject:
    """Return the figures of a turn's tokens, as precise as can be seen."""
    logprobs: list[Json] = [round(value, 2) for value in turn.logprobs.tolist()]
    entropies: list[Json] = [None if isnan(value) else round(value, 2) for value in turn.entropies.tolist()]
    return {"lengths": turn.lengths.tolist(), "logprobs": logprobs, "entropies": entropies}


def _boxes(row: EpisodeRow) -> list[Json]:
    """Return what the model zoomed into: the number of the image in the dialogue, and the box."""
    found = (zoom_box(call, order) for order, call in enumerate(row.tool_calls, start=1))
    return [{"image": place, **asdict(box)} for each in found if each is not None for place, box in [each]]


def _entry(line: int, row: EpisodeRow) -> Entry:
    return Entry(
        line=line,
        stage=row.stage,
        step=row.step,
        task=row.task,
        sample=row.sample_id,
        group=row.group,
        episode=row.episode,
        total=_rounded(row.total),
        outcome=outcome_of(row),
        stop=row.stop_reason,
        calls=len(row.tool_calls),
        failed=sum(not call.ok for call in row.tool_calls),
        tokens=row.num_tokens,
        advantage=_rounded(row.advantage),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _index(pieces: Sequence[Piece]) -> dict[str, object]:
    """Return the index of all files: the pieces, the texts by column, and each column of all episodes."""
    entries = [astuple(entry) for piece in pieces for entry in piece.entries]
    columns = {name: [entry[place] for entry in entries] for place, name in enumerate(COLUMNS)}
    texts: dict[str, list[str]] = {}
    for column in TEXTS:
        numbers: dict[str, int] = {}
        columns[column] = [numbers.setdefault(text, len(numbers)) for text in columns[column]]
        texts[column] = list(numbers)
    return {
        "pieces": [{"name": piece.name, "file": piece.file, "rows": len(piece.entries)} for piece in pieces],
        "texts": texts,
        "columns": columns,
        "broken": sum(piece.broken for piece in pieces),
    }


def _read_seen(path: Path) -> list[Piece]:
    """Return what the last time left; nothing where it is absent, damaged, or of another form."""
    try:
        left = json.loads(path.read_text("utf-8"))
        if left["form"] != _FORM:
            return []
        return [
            Piece(file, size, modified, broken, [Entry(*entry) for entry in entries])
            for file, size, modified, broken, entries in left["pieces"]
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return []
