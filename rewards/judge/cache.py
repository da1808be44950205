"""Verdicts on disk: one small JSON file each, named by the hash of what was asked.

Files appear whole or not at all, so any number of processes may share a folder. A folder that cannot be used
costs requests, never a verdict.
"""

import json
import logging
import os
import uuid
from pathlib import Path

from posttrain.files.strict_json import JsonError, parse_json

SHARDS = 256
MAX_ENTRY_BYTES = 1 << 14

log = logging.getLogger(__name__)


class VerdictCache:
    """A folder of verdicts that drops the oldest.

    Args:
        directory: Made when first written to.
        max_entries: Verdicts kept; at 16 KiB a verdict at most, the default is below 1 GiB.
    """

    def __init__(self, directory: Path, max_entries: int = 50_000):
        self.directory = directory
        self.per_shard = max(1, max_entries // SHARDS)

    def get(self, key: str) -> object:
        """Return the verdict stored under a digest; None where there is none, or only a damaged one."""
        try:
            with self._path(key).open("rb") as file:
                entry = parse_json(file.read(MAX_ENTRY_BYTES).decode())
        except (OSError, UnicodeDecodeError, JsonError):
            return None
        return entry.get("verdict") if isinstance(entry, dict) and entry.get("key") == key else None

    def put(self, key: str, verdict: object) -> None:
        """Store a verdict under a digest; one that is too large is not stored."""
        body = json.dumps({"key": key, "verdict": verdict}).encode()
        if len(body) > MAX_ENTRY_BYTES:
            return
        path = self._path(key)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(path.parent)
            try:
                temporary.write_bytes(body)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            log.warning("judge: verdicts cannot be kept in %s: %s", self.directory, error.strerror)

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.json"

    def _make_room(self, folder: Path) -> None:
        """Drop the oldest tenth of a full shard, with what killed processes left half written."""
        if len(os.listdir(folder)) < self.per_shard:  # noqa: PTH208 (names only; this runs for every verdict)
            return
        entries = sorted((_age(path), path) for path in folder.iterdir())
        for _, path in entries[: len(entries) - self.per_shard + 1 + self.per_shard // 10]:
            path.unlink(missing_ok=True)


def _age(path: Path) -> int:
    """Return when a file was written; one that another process has just dropped counts as the oldest."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
