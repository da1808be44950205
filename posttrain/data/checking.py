"""The check of a data file: every row is parsed once, every image and video is verified and hashed once."""

import hashlib
import os
import time
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from posttrain.data.formats import MAX_ROW_BYTES, DataError, parse_row, rows
from posttrain.data.media_stamps import (
    UNSETTLED,
    Medium,
    Stamp,
    check_medium,
    encode_medium,
    is_unchanged,
    media_of,
    stamp_of,
    unsettled_ns,
)
from posttrain.data.row_index import ALL_USES, USES, Fault, FileStamp, RowIndex, use_bit
from posttrain.data.uses import fits, repeated_id
from posttrain.files.progress import progress_bar
from posttrain.media.images import ImageError
from posttrain.media.videos import VideoError
from posttrain.types import VideoRef

#: Stamps and SHA-256 of images and videos that were found good before.
Known: TypeAlias = Mapping[Medium, tuple[Stamp, bytes]]

#: Rows that are parsed before the images of the first of them are waited for, and images of one task.
_AHEAD, _BATCH = 1024, 16
#: Longest wait for a file that was just written; a time further ahead is a clock's mistake.
_LONGEST_WAIT_S = 2.5


def check_rows(path: Path, image_root: Path | None = None, known: Known | None = None) -> RowIndex:
    """Read a canonical file, and check every row for every use and every image and video that rows show.

    Images and videos are looked at in parallel, rows one after another.

    Args:
        path: A canonical file.
        image_root: What image paths are relative to; the file's folder if None.
        known: Images and videos that need not be read again if they still have their stamp.

    Returns:
        What was found, in memory alone.

    Raises:
        DataError: If the file cannot be read.
    """
    path = path.absolute()
    root = path.parent if image_root is None else image_root.absolute()
    try:
        stamp, settled = _settled_stamp(path)
        with path.open("rb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            digest = hashlib.file_digest(file, "sha256")
            sha256 = digest.hexdigest()
            table = _MediaTable(pool, known or {}, digest)
            found = _RowTable(table)
            file.seek(0)
            with progress_bar(f"reading {path.name}", total=stamp.size, unit="B") as bar:
                for row in _read_ahead(file, path.name, root, table):
                    found.add(row)
                    bar.update(row.length)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return RowIndex(
        path=path,
        image_root=root,
        stamp=stamp,
        settled=settled,
        sha256=sha256,
        fingerprint=digest.hexdigest(),
        faults=tuple(found.faults),
        offsets=np.array(found.offsets, np.uint64),
        lines=np.array(found.lines, np.uint32),
        uses=np.array(found.uses, np.uint8),
        media_ends=np.array(found.media_ends, np.uint32),
        media=np.array(found.media, np.uint32),
        sizes=np.array(table.sizes, np.int64),
        times=np.array(table.times, np.int64),
        hashes=np.frombuffer(bytes(table.hashes), np.uint8).reshape(-1, 32),
        name_ends=np.array(table.name_ends, np.uint64),
        names=np.frombuffer(bytes(table.names), np.uint8),
    )


def still_broken(fault: Fault, index: RowIndex) -> bool:
    """Tell whether a row is broken as it was; it may not be, if an image or video was repaired.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        with index.path.open("rb") as file:
            file.seek(fault.offset)
            content = file.readline(MAX_ROW_BYTES + 1)
        sample = parse_row(content, index.image_root, f"{index.path.name}:{fault.line}")
        for medium in media_of(sample):
            check_medium(medium)
    except OSError as error:
        raise DataError(f"{index.path} cannot be read: {error.strerror}") from error
    except (DataError, ImageError, VideoError) as error:
        return str(error) == fault.reason
    return False


@dataclass(frozen=True)
class _Row:
    """A row that is parsed, and whose images and videos are being looked at.

    Attributes:
        line, offset, length: Where it is; `length` in bytes.
        id: The sample's.
        media: What it shows.
        uses: Those that its form allows, as bits.
        error: Why it is no sample; "" if it is one.
    """

    line: int
    offset: int
    length: int
    id: str = ""
    media: list[Medium] = field(default_factory=list)
    uses: int = 0
    error: str = ""


def _read_ahead(file: BinaryIO, name: str, root: Path, table: "_MediaTable") -> Iterator[_Row]:
    """Parse rows ahead of the one that is wanted, so that their images are looked at meanwhile."""
    ahead: deque[_Row] = deque()
    for line, offset, content in rows(file):
        try:
            sample = parse_row(content, root, f"{name}:{line}")
        except DataError as error:
            ahead.append(_Row(line, offset, len(content), error=str(error)))
        else:
            media = media_of(sample)
            table.request(media)
            uses = sum(use_bit(use) for use in USES if fits(sample, use))
            ahead.append(_Row(line, offset, len(content), sample.id, media, uses))
        if len(ahead) > _AHEAD:
            yield ahead.popleft()
    yield from ahead


class _RowTable:
    """The columns of a `RowIndex` that have to do with rows, as they grow."""

    def __init__(self, table: "_MediaTable"):
        self._table = table
        #: By id, the uses for which a row with this id is good.
        self._ids: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.offsets, self.lines, self.uses = array("Q"), array("I"), array("B")
        self.media_ends, self.media = array("I"), array("I")

    def add(self, row: _Row) -> None:
        """Judge a row for every use; it waits for the row's images and videos."""
        if row.error:
            self._fault(row, ALL_USES, row.error, by_files=True)
            return
        taken = self._ids.get(row.id, 0)
        if taken:
            self._fault(row, taken, repeated_id(row.id))
        if taken == ALL_USES:
            return
        try:
            # Prompts need only be whole: what they show is what the dataset's fingerprint depends on.
            numbers = self._table.numbers(row.media, digested=not taken & use_bit("prompts"))
        except DataError as error:
            self._fault(row, ALL_USES & ~taken, str(error), by_files=True)
            return
        good = row.uses & ~taken
        if good:
            self._ids[row.id] = taken | good
        self.offsets.append(row.offset)
        self.lines.append(row.line)
        self.uses.append(good)
        self.media.extend(numbers)
        self.media_ends.append(len(self.media))

    def _fault(self, row: _Row, uses: int, reason: str, by_files: bool = False) -> None:
        self.faults.append(Fault(row.line, row.offset, uses, reason, by_files))


class _MediaTable:
    """The columns of a `RowIndex` that have to do with images and videos, as they grow."""

    def __init__(self, pool: Executor, known: Known, digest: "hashlib._Hash"):
        self._pool, self._known, self._digest = pool, known, digest
        #: What is being looked at has its place in a batch, what is good a number, the rest the reason.
        self._looks: dict[Medium, tuple[_Batch, int] | int | str] = {}
        self._batch = _Batch()
        self._digested = bytearray()
        self.sizes, self.times, self.hashes = array("q"), array("q"), bytearray()
        self.name_ends, self.names = array("Q"), bytearray()

    def request(self, media: list[Medium]) -> None:
        """Begin to look at those that nobody has looked at yet."""
        for medium in media:
            if medium not in self._looks:
                self._looks[medium] = (self._batch, len(self._batch.media))
                self._batch.media.append(medium)
            if len(self._batch.media) == _BATCH:
                self._submit()

    def numbers(self, media: list[Medium], digested: bool) -> list[int]:
        """Return the numbers of images and videos that were requested; `digested` adds them to the digest.

        Raises:
            DataError: If one of them cannot be used. Those before it are added all the same.
        """
        numbers = []
        for medium in media:
            number = self._number(medium)
            numbers.append(number)
            if digested and not self._digested[number]:
                content = bytes(self.hashes[32 * number : 32 * number + 32])
                self._digest.update(content.hex().encode() if isinstance(medium, VideoRef) else content)
                self._digested[number] = True
        return numbers

    def _number(self, medium: Medium) -> int:
        look = self._looks[medium]
        if isinstance(look, tuple):
            batch, place = look
            if batch.found is None:
                self._submit()
            assert batch.found is not None
            found = batch.found.result()[place]
            look = self._looks[medium] = found if isinstance(found, str) else self._added(medium, *found)
        if isinstance(look, str):
            raise DataError(look)
        return look

    def _added(self, medium: Medium, stamp: Stamp, digest: bytes) -> int:
        """Give an image or video that is good the next number."""
        self.sizes.append(stamp[0])
        self.times.append(stamp[1])
        self.hashes += digest
        self.names += encode_medium(medium)
        self.name_ends.append(len(self.names))
        self._digested.append(False)
        return len(self.sizes) - 1

    def _submit(self) -> None:
        """Have the pool look at the images and videos that were requested, and begin another batch."""
        batch, self._batch = self._batch, _Batch()
        batch.found = self._pool.submit(lambda: [_look(each, self._known.get(each)) for each in batch.media])


@dataclass
class _Batch:
    """Images and videos that one task of the pool looks at.

    Attributes:
        media: Themselves.
        found: What `_look` says of each, once it has been submitted.
    """

    media: list[Medium] = field(default_factory=list)
    found: "Future[list[tuple[Stamp, bytes] | str]] | None" = None


def _look(medium: Medium, known: tuple[Stamp, bytes] | None) -> tuple[Stamp, bytes] | str:
    """Return the stamp and SHA-256 of an image or video, or why it cannot be used."""
    if known is not None and is_unchanged(medium, known[0]):
        return known
    # Its stamp comes first: a change during the check then shows.
    stamp = stamp_of(medium) or (0, UNSETTLED)
    try:
        return stamp, check_medium(medium)
    except (ImageError, VideoError) as error:
        return str(error)


def _settled_stamp(path: Path) -> tuple[FileStamp, bool]:
    """Return a file's stamp, and whether a later change must change it; a file just written is waited for."""
    stamp = FileStamp.of(path)
    left = unsettled_ns(stamp.mtime_ns) / 1e9
    if 0 < left < _LONGEST_WAIT_S:
        time.sleep(left)
        stamp = FileStamp.of(path)
    return stamp, not unsettled_ns(stamp.mtime_ns)
