"""Calls of MCP servers and their results in a file, from which a run repeats without the servers.

The file has a JSON object a line. The first is `{"form": 1, "server": NAME, "tools": […]}`, the tools as
the server lists them. Each other line is a call: `key`, `sample`, `tool`, `arguments`, `seconds`, and
`result`, a `CallToolResult` as on the wire with its images in base64, or `refused`, what the server said of
arguments that it did not take. A key is made of the sample's id and of all the session's calls so far, this
one last: so the same calls in the dialogue of the same prompt find the same results, whatever other episodes
do.

Several processes, of several nodes where they share the file, may record into one file. The first result of
a key holds, and whoever calls the same is given it.
"""

import fcntl
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from posttrain.files.durable import explaining_full_disk
from posttrain.files.strict_json import JsonObject

FORM = 1


class RecordError(ValueError):
    """A record cannot be used; the message says why, and what to do."""


def first_key(sample_id: str) -> str:
    """Return the key of a dialogue without calls."""
    return hashlib.sha256(sample_id.encode("utf-8", "replace")).hexdigest()


def next_key(key: str, tool: str, arguments: JsonObject) -> str:
    """Return the key of a call that comes after those of another key."""
    said = json.dumps([key, tool, arguments], sort_keys=True)
    return hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()


class CallRecord:
    """A record that is open, for reading alone or to grow.

    Args:
        path: The file; its folder is made if it is missing.
        server: Name of the server.
        tools: Its tools where calls are recorded; None where the record is only read.

    Attributes:
        tools: The server's tools.

    Raises:
        RecordError: If the file is no record, or one of other tools.
        OSError: If it cannot be read, or written.
    """

    def __init__(self, path: Path, server: str, tools: list[JsonObject] | None = None) -> None:
        self._path, self._lock = path, threading.Lock()
        self._places: dict[str, int] = {}
        self._seen, self._lines = 0, 0
        self.tools: list[JsonObject] = []
        if tools is None:
            self._file = path.open("rb")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        header = {"form": FORM, "server": server, "tools": tools}
        with self._lock:
            if tools is not None:
                self._append(header)
            else:
                self._look()
        if not self._lines:
            raise RecordError(f"{path} is empty; record into it first")
        if tools is not None and self.tools != tools:
            raise RecordError(f"{path} was recorded with other tools of {server}; name another file")

    def find(self, key: str) -> JsonObject | None:
        """Return the line of a call; None if there is none."""
        with self._lock:
            if key not in self._places:
                self._look()
            return self._read(self._places[key]) if key in self._places else None

    def keep(self, line: JsonObject) -> JsonObject:
        """Write the line of a call, unless its key has one; return the one that holds.

        Raises:
            DiskFull: If there is no space.
        """
        with self._lock:
            return self._append(line)

    def _append(self, line: JsonObject) -> JsonObject:
        """Write a line unless it is there; other processes wait meanwhile."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._look()
            end = os.fstat(self._file.fileno()).st_size
            if end > self._seen:  # a last line that a crash cut off
                self._file.truncate(self._seen)
            key = line.get("key")
            if isinstance(key, str) and key in self._places:
                return self._read(self._places[key])
            if key is None and self._lines:
                return line
            written = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace")
            with explaining_full_disk(self._path):
                try:
                    left = memoryview(written)
                    while left:
                        left = left[self._file.write(left) :]
                except OSError:
                    self._file.truncate(self._seen)
                    raise
            self._look()
            return line
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _look(self) -> None:
        """Read the whole lines that have come since the last look."""
        self._file.seek(self._seen)
        while (line := self._file.readline()).endswith(b"\n"):
            self._lines += 1
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{self._path}:{self._lines} is no line of a record: {error!r}") from error
            self._seen += len(line)

    def _take(self, line: Any) -> None:
        if self._lines > 1:
            self._places.setdefault(str(line["key"]), self._seen)
            return
        if line["form"] != FORM or not isinstance(line["tools"], list):
            raise ValueError("it begins otherwise")
        self.tools = line["tools"]

    def _read(self, place: int) -> JsonObject:
        self._file.seek(place)
        return json.loads(self._file.readline())
