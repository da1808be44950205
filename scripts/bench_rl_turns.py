"""Sides of a comparison as processes that take turns: one works, the others wait without using a core."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

#: Seconds that a side may take to get ready, and for a turn.
LIMIT = 600.0


class Side:
    """A side, as the process that compares has it: it starts the other process and gives it its turns.

    Args:
        name: Name in messages.
        command: Arguments of Python; the address to which the side connects is added.
        log: Where its output goes.

    Example:
        with Side("trl", ["bench_rl_trl.py", "zoom"], Path("trl.log")) as side:
            figures = side.turn()
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._log = log
        self._folder = tempfile.TemporaryDirectory(prefix="bench-rl-")
        address = str(Path(self._folder.name) / "turns")
        self._listener = Listener(address, family="AF_UNIX")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command, address],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._connection: Connection | None = None

    def __enter__(self) -> "Side":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ready(self) -> None:
        """Wait until the side can take its first turn."""
        if self._connection is None:
            self._listener._listener._socket.settimeout(1.0)  # type: ignore[attr-defined]
            self._connection = self._accepted(time.monotonic() + LIMIT)
            self._receive()

    def turn(self, what: object = None) -> dict[str, Any]:
        """Give the side a turn; return its figures, with the processor's time of all its processes as `cpu`.

        Args:
            what: What it is told to do.
        """
        self.ready()
        assert self._connection is not None
        before = cpu_seconds(self._process.pid)
        self._connection.send(what)
        figures = self._receive()
        after = cpu_seconds(self._process.pid)
        return figures | {"cpu": sum(after.values()) - sum(before.get(pid, 0.0) for pid in after)}

    def close(self) -> None:
        """End the side's processes."""
        if self._connection is not None:
            self._connection.close()  # a side that waits for its turn then ends by itself
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._listener.close()
        self._folder.cleanup()

    def _accepted(self, deadline: float) -> Connection:
        while time.monotonic() < deadline:
            try:
                return self._listener.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    break
        raise self._failed("did not get ready")

    def _receive(self) -> dict[str, Any]:
        assert self._connection is not None
        try:
            if self._connection.poll(LIMIT):
                return self._connection.recv()
        except (EOFError, ConnectionError):
            pass
        raise self._failed("ended, or took too long")

    def _failed(self, how: str) -> SystemExit:
        return SystemExit(f"{self.name} {how}:\n{self._log.read_text(errors='replace')[-3000:]}")


def cpu_seconds(root: int) -> dict[int, float]:
    """Return the processor's time that a process and its descendants have used, by process id."""
    found: dict[int, float] = {}
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


class Turns:
    """A side's own view: it waits for its turns, and hands over what it measured.

    Args:
        address: Where the process that compares listens.
    """

    def __init__(self, address: str) -> None:
        self._connection = Client(address, family="AF_UNIX")
        self.begun = 0.0
        threading.Thread(target=self._end_with, args=(os.getppid(),), daemon=True).start()

    def _end_with(self, parent: int) -> None:
        """End in the middle of a turn where the process that compares was killed."""
        while os.getppid() == parent:
            time.sleep(1.0)
        os.killpg(0, signal.SIGKILL)

    def wait(self, figures: Mapping[str, Any] | None = None) -> Any:
        """Hand over the figures of the turn that has ended, and wait for the next.

        Returns:
            What is to be done.

        Raises:
            SystemExit: If there are no more turns.
        """
        try:
            self._connection.send(dict(figures or {}))
            what = self._connection.recv()
        except (EOFError, ConnectionError):
            raise SystemExit from None
        self.begun = time.perf_counter()
        return what

    def seconds(self) -> float:
        """Return how long the turn has taken so far."""
        return time.perf_counter() - self.begun
