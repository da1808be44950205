"""The rows of a file that was checked: good ones parsed when asked for, broken ones with their reasons."""

import copy
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posttrain.config.data import Use
from posttrain.data.formats import DataError, parse_row
from posttrain.data.media_stamps import Medium, content_hash, described, is_unchanged, media_of
from posttrain.data.row_index import RowIndex, use_bit
from posttrain.media.images import ImageError
from posttrain.media.videos import VideoError
from posttrain.types import Sample


@dataclass(frozen=True)
class BrokenRow:
    """A row that was set aside.

    Example:
        BrokenRow("/data/train.jsonl:17", "image 'images/17.png' cannot be found: No such file or directory")
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class Dataset:
    """The good rows of a canonical file for one use, parsed when asked for.

    Opening one reads no row and no image; of each row a few bytes lie in the index, which processes share.

    Attributes:
        path: The JSONL file.
        image_root: What image paths are relative to.
        use: What the rows are used for.
        fingerprint: SHA-256 of the file, and of the images and videos that it names.
        filtered: Number of rows that the dataset's filters removed.
        identity: Differs between datasets of one use that have other rows.

    Example:
        dataset = Dataset(check_rows(Path("train.jsonl")))
        dataset[0].messages
    """

    def __init__(
        self,
        index: RowIndex,
        use: Use = "prompts",
        places: Path | None = None,
        left_out: Sequence[BrokenRow] = (),
        filtered: int = 0,
    ):
        """Open the rows that an index tells of.

        Args:
            index: What the check of the file found.
            use: Rows that cannot be used so are broken: `dialogues` have an assistant's turn to learn from,
                `pairs` have `chosen` and `rejected`, `episodes` show no videos.
            places: Of a rewritten file, which line says where each line came from.
            left_out: Broken rows that were set aside before the file was written.
            filtered: Number of rows that filters removed before.
        """
        self.path, self.image_root = index.path, index.image_root
        self.use: Use = use
        self.fingerprint = index.fingerprint
        self.filtered = filtered
        self._index = index
        self._places = places
        self._left_out = left_out
        self._version = index.stamp[:2]
        self._unrenderable: dict[int, str] = {}
        self.identity = index.fingerprint
        good = index.uses & use_bit(use) != 0
        self._rows: Sequence[int] | np.ndarray = (
            range(len(index)) if good.all() else np.flatnonzero(good).astype(np.uint32)
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Parse the sample at `index` of the good rows, in the file's order.

        Raises:
            IndexError: Beyond the last row.
            DataError: If the file, or an image or video of the row, has changed since it was checked.
        """
        row = int(self._rows[index])
        line = int(self._index.lines[row])
        try:
            if file_version(self.path) != self._version:
                raise DataError("the file has changed since the run began; restore it, or start anew")
            with self.path.open("rb") as file:
                file.seek(int(self._index.offsets[row]))
                sample = parse_row(file.readline(), self.image_root, f"{self.path.name}:{line}")
            for number, medium in zip(self._index.media_of_row(row), media_of(sample), strict=True):
                self._compare(number, medium)
            return sample
        except OSError as error:
            raise DataError(f"{self.path}:{line} cannot be read: {error.strerror}") from error
        except (DataError, ImageError, VideoError) as error:
            raise DataError(f"{self.place(line)}: {error}") from None

    def without(self, reasons: Mapping[int, str]) -> "Dataset":
        """Return the dataset without some of its good rows, which are broken after all.

        Args:
            reasons: Why, by the rows' places among the good ones.
        """
        other = copy.copy(self)
        other.__dict__.pop("broken", None)
        lost = sorted(reasons)
        rows = np.asarray(self._rows, dtype=np.uint32)
        lines = self._index.lines[rows[lost]].tolist()
        other._rows = np.delete(rows, lost)
        other._unrenderable = dict(zip(lines, (reasons[index] for index in lost), strict=True))
        other.identity = f"{self.identity}/{hashlib.sha256(str(lost).encode()).hexdigest()}"
        return other

    @functools.cached_property
    def broken(self) -> list[BrokenRow]:
        """The rows set aside, with place and reason: first those that could not be rewritten."""
        reasons = dict(sorted((self._index.broken_for(self.use) | self._unrenderable).items()))
        places = _lines(self._places, reasons.keys())
        found = (
            BrokenRow(places.get(line, f"{self.path}:{line}"), reason) for line, reason in reasons.items()
        )
        return [*self._left_out, *found]

    def place(self, line: int) -> str:
        """Return where a line of the file came from, as `file:line`."""
        return _lines(self._places, {line}).get(line, f"{self.path}:{line}")

    def _compare(self, number: int, medium: Medium) -> None:
        """Refuse an image or video that is not what was checked; one of another place or stamp is read."""
        [(checked, stamp)] = self._index.media_in(number, 1)
        if medium == checked and is_unchanged(medium, stamp):
            return
        if content_hash(medium) != self._index.hash_of(number):
            # Through a link that leads elsewhere now, looking at what was checked would find nothing changed.
            self._index.discard()
            raise DataError(f"{described(medium)} has changed since the run began; restore it, or start anew")


def file_version(path: Path) -> tuple[int, int]:
    """Return a file's size in bytes, and the time of its last change in ns."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _lines(path: Path | None, numbers: Set[int]) -> dict[int, str]:
    """Return some of a file's lines by their numbers from 1; none if there is no file."""
    if path is None or not numbers:
        return {}
    with path.open(encoding="utf-8") as file:
        lines = itertools.islice(enumerate(file, 1), max(numbers))
        return {number: line.rstrip("\n") for number, line in lines if number in numbers}
