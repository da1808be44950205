"""A file of JSON lines that only grows, whatever crash or full disk comes in between."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from posttrain.files.durable import explaining_full_disk, sync

#: What JSON can hold, under keys that whoever keeps the log knows.
Line: TypeAlias = dict[str, Any]


class LineLogError(RuntimeError):
    """A log is damaged beyond its last line."""


class LineLog:
    """A file of JSON objects, a line each, that are found again by where they stand.

    A last line that a crash cut off is removed when the log is opened.

    Args:
        path: The file; its folder exists.
        keep: Is given every line, those that are there first, with the offset to `read` it by. What it
            raises of ValueError, KeyError, IndexError and TypeError tells that a line is damaged.

    Raises:
        LineLogError: If a line but the last is damaged.
        DiskFull: If there is no space for the file.
    """

    def __init__(self, path: Path, keep: Callable[[Line, int], object]) -> None:
        self._path = path
        self._keep = keep
        with explaining_full_disk(path):
            # Unbuffered: what a full disk refused must not stay behind, to be written later.
            self._writer = path.open("ab", buffering=0)
            sync(path.parent)
        self._reader = path.open("rb")
        self._end = self._replay()
        self._writer.truncate(self._end)

    def append(self, lines: Sequence[Line]) -> None:
        """Write lines; a crash of the process does not lose them, one of the machine may until `sync`.

        Raises:
            DiskFull: If there is no space; what was kept before is intact, and none of these is kept.
        """
        encoded = [(json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace") for line in lines]
        with explaining_full_disk(self._path):
            try:
                left = memoryview(b"".join(encoded))
                while left:
                    left = left[self._writer.write(left) :]
            except OSError:
                self._writer.truncate(self._end)
                raise
        for line, content in zip(lines, encoded, strict=True):
            self._keep(line, self._end)
            self._end += len(content)

    def read(self, offset: int) -> Line:
        """Read the line at an offset."""
        self._reader.seek(offset)
        return json.loads(self._reader.readline())

    def sync(self) -> None:
        """Bring everything to the disk.

        Raises:
            DiskFull: If there is no space.
        """
        with explaining_full_disk(self._path):
            os.fsync(self._writer.fileno())

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
        self._reader.close()

    def _replay(self) -> int:
        """Read the lines, and return the offset where the last whole one ends."""
        end = 0
        for number, encoded in enumerate(self._reader, 1):
            if not encoded.endswith(b"\n"):
                break
            try:
                self._keep(json.loads(encoded), end)
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise LineLogError(
                    f"{self._path}:{number} is damaged ({error!r}); cut the file off before this line, then"
                    " go on with --resume"
                ) from error
            end += len(encoded)
        return end
