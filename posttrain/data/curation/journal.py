"""What a step said of each row, appended as it becomes known: the state that a curation resumes from."""

import array
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.data.curation.outcomes import Changes, CurationError, Outcome
from posttrain.durable import explaining_full_disk, sync

PENDING, KEPT, DROPPED, FAILED = range(4)
#: Seconds of verdicts that a power failure may cost; a killed process costs none.
SYNC_EVERY_S = 1.0


class Journal:
    """One step's verdicts, one JSON line each; about 9 bytes a row are held.

    A line is `{"row", "id", "reason", "note", "scores", "changes"}`, or `{"row", "id", "error"}` for a row
    that could not be judged, which a later line may replace.

    Attributes:
        path: The file.
        fate: By row: `PENDING`, `KEPT`, `DROPPED` or `FAILED`.

    Raises:
        CurationError: If a line but the last is damaged, or belongs to no row.
    """

    def __init__(self, path: Path, rows: int):
        """Open the file and read what is there; an unfinished last line is cut off."""
        self.path = path
        self.fate = bytearray(rows)
        self._offsets = array.array("Q", bytes(8 * rows))
        with explaining_full_disk(path):
            self._file: BinaryIO = path.open("a+b")
            sync(path.parent)
        self._synced = time.monotonic()
        self._end = self._replay()
        self._file.truncate(self._end)

    def append(self, row: int, name: str, outcome: Outcome | str) -> None:
        """Keep a verdict, or the reason why there is none.

        Args:
            row: The row's number.
            name: Its id.
            outcome: The verdict, or an error's text.

        Raises:
            DiskFull: If there is no space; what was kept before is intact.
        """
        line: dict[str, Any] = {"row": row, "id": name}
        if isinstance(outcome, str):
            line["error"] = outcome
        else:
            line |= {"reason": outcome.reason, "note": outcome.note, "scores": outcome.scores}
            line["changes"] = {k: v for k, v in asdict(outcome.changes).items() if v not in (None, {})}
        encoded = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        with explaining_full_disk(self.path):
            self._file.write(encoded)
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_EVERY_S:
                self.sync()
        self._keep(line, self._end)
        self._end += len(encoded)

    def read(self, row: int) -> dict[str, Any]:
        """The newest line of a row that is not pending."""
        self._file.seek(self._offsets[row])
        return json.loads(self._file.readline())

    def outcome(self, row: int) -> Outcome:
        """The verdict on a row that was judged."""
        line = self.read(row)
        return Outcome(line["reason"], line["note"], line["scores"], Changes(**line["changes"]))

    def sync(self) -> None:
        """Bring everything to the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file."""
        self.sync()
        self._file.close()

    def _replay(self) -> int:
        """Read the lines; the offset where the last whole one ends."""
        self._file.seek(0)
        end = 0
        for number, encoded in enumerate(self._file, 1):
            if not encoded.endswith(b"\n"):
                break
            try:
                self._keep(json.loads(encoded), end)
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise CurationError(
                    f"{self.path}:{number} is damaged ({error}); cut the file off before this line, then go"
                    " on with --resume"
                ) from error
            end += len(encoded)
        return end

    def _keep(self, line: dict[str, Any], offset: int) -> None:
        row = line["row"]
        fate = FAILED if "error" in line else DROPPED if line["reason"] else KEPT
        if row < 0:
            raise IndexError("a negative row")
        self.fate[row] = fate
        self._offsets[row] = offset
