"""The models' answers on disk, so that none is asked for twice: after a crash, or by another recipe."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.curation.outcomes import CurationError
from posttrain.files.durable import explaining_full_disk

WAIT_S = 30.0


class AnswerCache:
    """Answers by the digest of what was asked, in an SQLite file that several processes may share.

    Args:
        path: The file; its folder exists.

    Raises:
        CurationError: If the file is damaged, or another process holds it for long.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._explained():
            self._database = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
            # With a write-ahead log a killed process loses nothing, and nobody waits for the disk.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)"
                " WITHOUT ROWID"
            )

    def get(self, key: str) -> Any:
        """What `put` was given under a key, or None."""
        with self._explained():
            found = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return json.loads(found[0]) if found else None

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer, a JSON value.

        Raises:
            DiskFull: If there is no space.
        """
        with self._explained():
            self._database.execute("REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with explaining_full_disk(self.path):
                yield
        except sqlite3.Error as error:
            raise CurationError(
                f"{self.path}, the models' cached answers, cannot be used ({error}); remove it to ask anew"
            ) from error
