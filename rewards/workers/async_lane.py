"""One process in which many calls of async rewards, such as judges, wait for their services at once."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.plugins import PluginError
from rewards import wire
from rewards.manager import Call, Outcome
from rewards.workers.process import ScoringProcess, WorkerLost
from rewards.workers.worker import work_async

#: A call ends itself at its deadline; so long after it, the event loop must be stuck.
GRACE_S = 5.0
_LOOK_S = 0.5


@dataclass
class _Running:
    members: int
    due: float
    future: Future[list[Outcome]] = field(default_factory=Future)


class AsyncLane:
    """Runs calls of async rewards, all at once, in one killable process that starts when first used.

    A call that blocks the event loop past its deadline costs every call that is under way: the process is
    killed, each of them becomes an error, and the next call gets a new process.

    Args:
        references: The rewards that the process loads.
        base_dir: Folder against which file references are resolved.

    Attributes:
        counts: Hangs and crashes since the start.
    """

    def __init__(self, references: Sequence[str], base_dir: Path | None):
        self.counts: Counter[str] = Counter()
        self._references = list(references)
        self._base_dir = base_dir
        self._lock = threading.Lock()
        self._process: ScoringProcess | None = None
        self._running: dict[int, _Running] = {}
        self._last_id = 0

    def submit(self, call: Call, bodies: Sequence[bytes], deadline_s: float) -> Future[list[Outcome]]:
        """Start a call; the future brings one outcome a member and never raises.

        Args:
            call: Of an async reward.
            bodies: Its members as JSON, in order.
            deadline_s: Seconds that it may take.
        """
        running = _Running(len(bodies), time.monotonic() + deadline_s + GRACE_S)
        local = Call(call.spec, tuple(range(len(bodies))))
        with self._lock:
            self._last_id += 1
            header = wire.job_header([local], len(bodies))
            header["id"], header["deadline_s"] = self._last_id, deadline_s
            try:
                process = self._process or self._start()
            except (PluginError, WorkerLost, OSError) as error:
                reason = Outcome(error=f"no scoring process could be started: {error}")
                running.future.set_result([reason] * running.members)
                return running.future
            self._running[self._last_id] = running
            with contextlib.suppress(WorkerLost):  # the thread that collects notices too, and answers
                process.send(header, bodies)
        return running.future

    def close(self) -> None:
        """End the process; what runs in it becomes an error."""
        with self._lock:
            process = self._process
        if process:
            self._lose(process, "the server is closing")

    def _start(self) -> ScoringProcess:
        process = ScoringProcess.started(work_async, self._references, self._base_dir)
        self._process = process
        threading.Thread(target=self._collect, args=(process,), daemon=True).start()
        return process

    def _collect(self, process: ScoringProcess) -> None:
        """Hand over one process's replies until it dies or is stuck."""
        try:
            while self._process is process:
                if process.pipe.poll(_LOOK_S):
                    reply = process.receive(GRACE_S)
                    with self._lock:
                        running = self._running.pop(reply["id"])
                    running.future.set_result([wire.outcome_from_json(row) for row in reply["outcomes"]])
                elif any(running.due < time.monotonic() for running in list(self._running.values())):
                    self.counts["hangs"] += 1
                    self._lose(process, "a call blocked the process past its deadline, so it was killed")
        except WorkerLost as error:
            if self._process is process:
                self.counts["crashes"] += 1
                self._lose(process, str(error))
        finally:
            process.pipe.close()

    def _lose(self, process: ScoringProcess, reason: str) -> None:
        """Give up a process and every call in it."""
        process.end()  # first, for one that reads nothing may be holding up the thread that has the lock
        with self._lock:
            if self._process is process:
                self._process = None
            lost, self._running = self._running, {}
        for running in lost.values():
            running.future.set_result([Outcome(error=reason)] * running.members)
