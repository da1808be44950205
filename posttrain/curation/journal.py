"""A step's verdict on each row, written as soon as it is known: the state that a curation resumes from."""

import array
import time
from dataclasses import asdict
from pathlib import Path

from posttrain.curation.outcomes import Changes, Outcome
from posttrain.files.line_log import LineLog
from posttrain.files.strict_json import JsonObject

PENDING, KEPT, DROPPED, FAILED = range(4)
#: A power failure loses the verdicts of at most so many seconds; the end of a process loses none.
SYNC_EVERY_S = 1.0


class Journal:
    """One step's verdicts, one JSON line each; it takes about 9 bytes of memory per row.

    A line is `{"row", "id", "reason", "note", "scores", "changes"}`, or `{"row", "id", "error"}` for a row
    that could not be judged; such a line may be replaced by a later one.

    Attributes:
        fate: For each row `PENDING`, `KEPT`, `DROPPED` or `FAILED`.

    Raises:
        LineLogError: If any line but the last is damaged, or belongs to no row.
    """

    def __init__(self, path: Path, rows: int):
        """Open the file, and read the verdicts that are there.

        Args:
            path: The file; created if missing.
            rows: Number of rows of the data.
        """
        self.fate = bytearray(rows)
        self._offsets = array.array("Q", bytes(8 * rows))
        self._log = LineLog(path, self._keep)
        self._synced = time.monotonic()

    def append(self, row: int, name: str, outcome: Outcome | str) -> None:
        """Write a verdict, or the reason why there is none.

        Args:
            row: Number of the row.
            name: Id of the row.
            outcome: The verdict, or the text of an error.

        Raises:
            DiskFull: If there is no space; what was written before is intact.
        """
        line: JsonObject = {"row": row, "id": name}
        if isinstance(outcome, str):
            line["error"] = outcome
        else:
            line |= {"reason": outcome.reason, "note": outcome.note, "scores": {**outcome.scores}}
            line |= {"kept_as": outcome.kept_as} if outcome.kept_as else {}
            line["changes"] = {k: v for k, v in asdict(outcome.changes).items() if v not in (None, {})}
        self._log.append([line])
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            self.sync()

    def error(self, row: int) -> str:
        """Read why a row could not be judged."""
        return self._log.read(self._offsets[row])["error"]

    def outcome(self, row: int) -> Outcome:
        """Read the verdict on a row that was judged."""
        line = self._log.read(self._offsets[row])
        changes = Changes(**line["changes"])
        return Outcome(line["reason"], line["note"], line["scores"], changes, line.get("kept_as", ""))

    def sync(self) -> None:
        """Make everything that was written safe from a power failure."""
        self._log.sync()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file."""
        self.sync()
        self._log.close()

    def _keep(self, line: JsonObject, offset: int) -> None:
        """Note the fate of a line's row, and where the line is."""
        row = line["row"]
        if not isinstance(row, int):
            raise TypeError("a row that is no number")
        fate = FAILED if "error" in line else DROPPED if line["reason"] else KEPT
        if row < 0:
            raise IndexError("a negative row")
        self.fate[row] = fate
        self._offsets[row] = offset
