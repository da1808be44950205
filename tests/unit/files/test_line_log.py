"""The log of lines: what a full disk refuses leaves no trace, whenever it happens."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from posttrain.files.durable import DiskFull
from posttrain.files.line_log import LineLog


class FullDisk:
    """A writer that takes so many bytes more, and then says what a full disk says."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, content: memoryview) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._file.write(content[: self._room])
        self._room -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_line_that_does_not_fit_is_not_kept_and_the_next_one_is(tmp_path: Path) -> None:
    first, second, third = {"is": "first"}, {"is": "second", "long": "é" * 50}, {"is": "third"}
    for room in range(100):
        kept: dict[str, int] = {}
        path = tmp_path / f"{room}.jsonl"
        log = LineLog(path, lambda line, offset: kept.__setitem__(line["is"], offset))  # noqa: B023
        log.append([first])
        writer = log._writer
        log._writer = FullDisk(writer, room)  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(DiskFull, match="--resume"):
            log.append([second])
        log._writer = writer
        log.append([third])
        assert kept.keys() == {"first", "third"}
        log.close()
        seen: list[dict[str, Any]] = []
        again = LineLog(path, lambda line, offset: seen.append(line))  # noqa: B023
        assert seen == [first, third]
        assert [again.read(offset) for offset in kept.values()] == [first, third]
        again.close()


def test_many_lines_come_whole_or_not_at_all(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log.jsonl", lambda line, offset: None)
    writer = log._writer
    log._writer = FullDisk(writer, 15)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DiskFull):
        log.append([{"n": number} for number in range(3)])
    log._writer = writer
    log.close()
    assert (tmp_path / "log.jsonl").read_bytes() == b""
