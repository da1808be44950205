"""Models' answers on disk, so that none is asked for twice: not after a crash, and not by another recipe."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.curation.outcomes import CurationError
from posttrain.files.durable import explaining_full_disk
from posttrain.files.strict_json import Json

#: Seconds to wait for another process that holds the file.
WAIT_S = 30.0


class AnswerCache:
    """Answers by the digest of the question, in an SQLite file that several processes may use at once.

    Args:
        path: The file, in a folder that exists.

    Raises:
        CurationError: If the file is damaged, or another process holds it for too long.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._explained():
            self._database = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
            # With a write-ahead log a killed process loses nothing, and writers do not wait for the disk.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)"
                " WITHOUT ROWID"
            )

    def get(self, key: str) -> Json:
        """Return the answer that was put under a key, or None."""
        with self._explained():
            found = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return json.loads(found[0]) if found else None

    def put(self, key: str, answer: Json) -> None:
        """Store an answer under a key.

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
        """Turn SQLite's errors into errors that say what to do."""
        try:
            with explaining_full_disk(self.path):
                yield
        except sqlite3.Error as error:
            raise CurationError(
                f"{self.path}, the models' cached answers, cannot be used ({error}); remove it to ask anew"
            ) from error
