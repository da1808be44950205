"""What a step said of each row, appended as it becomes known: the state that a curation resumes from."""

import array
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.curation.outcomes import Changes, Outcome
from posttrain.files.line_log import LineLog

PENDING, KEPT, DROPPED, FAILED = range(4)
#: Seconds of verdicts that a power failure may cost; a killed process costs none.
SYNC_EVERY_S = 1.0


class Journal:
    """One step's verdicts, one JSON line each; about 9 bytes a row are held.

    A line is `{"row", "id", "reason", "note", "scores", "changes"}`, or `{"row", "id", "error"}` for a row
    that could not be judged, which a later line may replace.

    Attributes:
        fate: By row: `PENDING`, `KEPT`, `DROPPED` or `FAILED`.

    Raises:
        LineLogError: If a line but the last is damaged, or belongs to no row.
    """

    def __init__(self, path: Path, rows: int):
        """Open the file and read what is there."""
        self.fate = bytearray(rows)
        self._offsets = array.array("Q", bytes(8 * rows))
        self._log = LineLog(path, self._keep)
        self._synced = time.monotonic()

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
        self._log.append([line])
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            self.sync()

    def read(self, row: int) -> dict[str, Any]:
        """The newest line of a row that is not pending."""
        return self._log.read(self._offsets[row])

    def outcome(self, row: int) -> Outcome:
        """The verdict on a row that was judged."""
        line = self.read(row)
        return Outcome(line["reason"], line["note"], line["scores"], Changes(**line["changes"]))

    def sync(self) -> None:
        """Bring everything to the disk."""
        self._log.sync()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file."""
        self.sync()
        self._log.close()

    def _keep(self, line: dict[str, Any], offset: int) -> None:
        row = line["row"]
        fate = FAILED if "error" in line else DROPPED if line["reason"] else KEPT
        if row < 0:
            raise IndexError("a negative row")
        self.fate[row] = fate
        self._offsets[row] = offset
