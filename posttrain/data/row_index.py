"""What a check has found in a data file, as one file of numbers that other processes map into memory.

    a head of fixed size: what it is, the format's number, a checksum of all that follows
    a JSON object: the data file, its stamp and hashes, the broken rows, and how long the columns are
    the columns, one after another, each beginning at a multiple of 8 bytes

The columns have one entry for each row that is whole, for each place where a row shows an image or video
(in the order of `media_of`), or for each of the different images and videos. Nothing in the file is ever
executed, and a file whose checksum does not fit is not used.
"""

import dataclasses
import itertools
import json
import mmap
import os
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, get_args

import numpy as np

from posttrain.config.data import Use
from posttrain.data.media_stamps import Medium, Stamp, decode_medium
from posttrain.data.uses import MISFITS
from posttrain.files.durable import explaining_full_disk, sync
from posttrain.files.strict_json import Json

#: What the rows of a dataset are used for, and so what each of them must have.
USES: tuple[Use, ...] = get_args(Use)
#: A set of uses: the bit of each of them, in the order of `USES`.
ALL_USES = (1 << len(USES)) - 1
#: To be raised when the file's form changes, or the rules by which rows, images and videos are checked.
FORMAT = 3

_MAGIC = b"posttrain row index\n"
#: What it is, the format, the checksum of the rest, the length of the JSON object.
_HEAD = struct.Struct("<20sIIQ")
_CHUNK = 1 << 20
#: Columns and the types of their numbers.
_COLUMNS = {
    "offsets": "<u8",
    "lines": "<u4",
    "uses": "u1",
    "media_ends": "<u4",
    "media": "<u4",
    "sizes": "<i8",
    "times": "<i8",
    "hashes": "u1",
    "name_ends": "<u8",
    "names": "u1",
}


def use_bit(use: Use) -> int:
    """Return the bit that stands for a use."""
    return 1 << USES.index(use)


class IndexFileError(ValueError):
    """A file that is no index of this format, or a damaged one."""


class FileStamp(NamedTuple):
    """A data file's size, and when its contents and its inode last changed."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileStamp":
        """Look at a file; raises OSError if it cannot be found."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True)
class Fault:
    """Why a row is broken.

    Attributes:
        line: Its line in the data file, from 1.
        offset: Where the line begins, in bytes.
        uses: The uses that it is broken for, as bits.
        reason: Why.
        by_files: Whether the row may be whole again though it did not change, because an image or video was
            repaired or put in its place.
    """

    line: int
    offset: int
    uses: int
    reason: str
    by_files: bool


@dataclass(frozen=True, eq=False)
class RowIndex:
    """What a check has found in a data file.

    Attributes:
        path: The data file.
        image_root: What image paths are relative to.
        stamp: Of the data file before it was read.
        settled: Whether a later change of the data file must have changed its stamp.
        sha256: Of the data file's contents.
        fingerprint: SHA-256 of the data file's contents, and of the images and videos that it names.
        faults: Of the broken rows, in their order.
        offsets: [rows] Where each row begins that is whole.
        lines: [rows] Its line, from 1.
        uses: [rows] The uses that it is good for, as bits. For the others it has a fault, or is a misfit.
        media_ends: [rows] Where its entries in `media` end; they begin where those of the row before end.
        media: [places] Number of the image or video that is shown there.
        sizes, times: [images and videos] Their stamps.
        hashes: [images and videos, 32] Their contents' SHA-256.
        name_ends: [images and videos] Where each one's name ends in `names`.
        names: [bytes] What `encode_medium` wrote of them.
        file: Where the index is kept; None if it is in memory alone.
        checksum: Of that file.
    """

    path: Path
    image_root: Path
    stamp: FileStamp
    settled: bool
    sha256: str
    fingerprint: str
    faults: tuple[Fault, ...]
    offsets: np.ndarray
    lines: np.ndarray
    uses: np.ndarray
    media_ends: np.ndarray
    media: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    hashes: np.ndarray
    name_ends: np.ndarray
    names: np.ndarray
    file: Path | None = None
    checksum: int = 0

    def __reduce__(self) -> tuple[object, ...]:
        """Go to another process as the file's name where there is one, so that the columns stay shared."""
        if self.file is not None:
            return _reopened, (self.file, self.checksum)
        return RowIndex, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def media_count(self) -> int:
        """Number of different images and videos."""
        return len(self.sizes)

    def broken_for(self, use: Use) -> dict[int, str]:
        """Return the rows that cannot be used so: by their lines, in order, why."""
        bit = use_bit(use)
        reasons = {fault.line: fault.reason for fault in self.faults if fault.uses & bit}
        misfits = self.lines[self.uses & bit == 0].tolist()
        reasons |= {line: MISFITS[use] for line in misfits if line not in reasons}
        return dict(sorted(reasons.items()))

    def media_in(self, start: int, count: int) -> Iterator[tuple[Medium, Stamp]]:
        """Go through images and videos in the order of their numbers, with the stamps that they had."""
        part = slice(start, start + count)
        begun = int(self.name_ends[start - 1]) if start else 0
        ends = [end - begun for end in self.name_ends[part].tolist()]
        names = self.names[begun : begun + ends[-1] if ends else begun].tobytes()
        stamps = zip(self.sizes[part].tolist(), self.times[part].tolist(), strict=True)
        for (first, end), stamp in zip(itertools.pairwise([0, *ends]), stamps, strict=True):
            yield decode_medium(names[first:end]), stamp

    def hash_of(self, number: int) -> bytes:
        """Return the SHA-256 that an image's or video's contents had when they were checked."""
        return self.hashes[number].tobytes()

    def media_of_row(self, row: int) -> list[int]:
        """Return the numbers of the images and videos that a row shows, in the order of `media_of`."""
        start = int(self.media_ends[row - 1]) if row else 0
        return self.media[start : int(self.media_ends[row])].tolist()

    def discard(self) -> None:
        """Remove the index's file, so that the next opening checks the dataset again."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def save(self, file: Path) -> None:
        """Write the index; the file appears complete or not at all.

        Raises:
            DiskFull: If there is no space.
            OSError: If the file cannot be written.
        """
        body = self._body()
        checksum = 0
        for part in body:
            checksum = zlib.crc32(part, checksum)
        temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}.tmp")
        try:
            with explaining_full_disk(file):
                with temporary.open("wb") as opened:
                    opened.write(_HEAD.pack(_MAGIC, FORMAT, checksum, len(body[0])))
                    for part in body:
                        opened.write(part)
                    opened.flush()
                    os.fsync(opened.fileno())
                temporary.replace(file)
                sync(file.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _body(self) -> list[bytes | memoryview]:
        """Return what follows the head, the JSON object first."""
        columns = {name: np.ascontiguousarray(getattr(self, name)) for name in _COLUMNS}
        header: dict[str, Json] = {
            "path": str(self.path),
            "image_root": str(self.image_root),
            "stamp": list(self.stamp),
            "settled": self.settled,
            "sha256": self.sha256,
            "fingerprint": self.fingerprint,
            "faults": [list(dataclasses.astuple(fault)) for fault in self.faults],
            "lengths": {name: column.size for name, column in columns.items()},
        }
        text = json.dumps(header).encode()
        body: list[bytes | memoryview] = [text + b" " * (-(_HEAD.size + len(text)) % 8)]
        for name, column in columns.items():
            encoded = column.astype(_COLUMNS[name], copy=False)
            body += [encoded.reshape(-1).view(np.uint8).data, bytes(-encoded.nbytes % 8)]
        return body


def open_index(file: Path) -> RowIndex:
    """Map an index into memory.

    Raises:
        IndexFileError: If it is damaged, half-written or of another format.
        OSError: If it cannot be read.
    """
    with file.open("rb") as opened:
        head = opened.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise IndexFileError(f"{file} breaks off")
        magic, format_number, checksum, header_length = _HEAD.unpack(head)
        if (magic, format_number) != (_MAGIC, FORMAT):
            raise IndexFileError(f"{file} is no index of the format {FORMAT}")
        if _checksum(opened) != checksum:
            raise IndexFileError(f"{file} is damaged")
        try:
            content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            header = json.loads(content[_HEAD.size : _HEAD.size + header_length])
            columns = _columns(content, _HEAD.size + header_length, header["lengths"])
            return RowIndex(
                path=Path(header["path"]),
                image_root=Path(header["image_root"]),
                stamp=FileStamp(*header["stamp"]),
                settled=header["settled"],
                sha256=header["sha256"],
                fingerprint=header["fingerprint"],
                faults=tuple(Fault(*fields) for fields in header["faults"]),
                file=file,
                checksum=checksum,
                **columns,
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IndexFileError(f"{file} cannot be understood: {error!r}") from error


def _checksum(file: IO[bytes]) -> int:
    checksum = 0
    while chunk := file.read(_CHUNK):
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def _columns(content: mmap.mmap, start: int, lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the columns by name; ValueError if they are not what the file holds."""
    columns: dict[str, np.ndarray] = {}
    for name, kind in _COLUMNS.items():
        column = np.frombuffer(content, np.dtype(kind), lengths[name], start)
        columns[name] = column
        start += column.nbytes + -column.nbytes % 8
    if start != len(content):
        raise ValueError(f"it has {len(content):,} bytes, and its columns end at {start:,}")
    columns["hashes"] = columns["hashes"].reshape(-1, 32)
    return columns


def _reopened(file: Path, checksum: int) -> RowIndex:
    """Open an index that another process sent by its name.

    Raises:
        IndexFileError: If it is another one by now.
        OSError: If it cannot be read.
    """
    index = open_index(file)
    if index.checksum != checksum:
        raise IndexFileError(f"{file} was made anew since it was sent; restart what received it")
    return index
