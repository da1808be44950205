"""A pool of scoring processes, each of which can be killed without harm to the rest.

One thread drives one process: it hands over a job, waits for each call's outcomes until the deadline, and
replaces the process when it hangs, dies or has served long enough. A hang or a crash costs the one call that
was being made.
"""

import contextlib
import os
import queue
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.plugins import PluginError
from rewards import wire
from rewards.manager import Call, Outcome
from rewards.workers.process import ScoringProcess, WorkerLost, preload
from rewards.workers.worker import work

MAX_WORKERS = 16


@dataclass
class _Job:
    calls: list[Call]
    bodies: list[bytes]
    future: Future[list[list[Outcome]]] = field(default_factory=Future)


class WorkerPool:
    """Runs calls of rewards in killable processes.

    Args:
        references: The rewards that the workers load.
        workers: Number of processes; None for one a core, up to 16.
        deadline_s: Seconds that one call may take where its reward declares no limit of its own.
        base_dir: Folder against which file references are resolved.
        samples_per_worker: A process is replaced after so many episodes, which bounds what leaks.

    Attributes:
        workers: Number of processes.
        samples_per_worker: Episodes after which a process is replaced.
        rewards: What each loaded reward says of itself: name, low, high, group, async,
            deadline_s, guarded, params, summary.
        counts: Hangs, crashes and recycled workers since the start.

    Raises:
        PluginError: If a reference does not lead to a reward.
    """

    def __init__(
        self,
        references: Sequence[str],
        workers: int | None = None,
        deadline_s: float = 10.0,
        base_dir: Path | None = None,
        samples_per_worker: int = 5000,
    ):
        self.workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
        self.counts: Counter[str] = Counter()
        self._references = list(references)
        self._base_dir = base_dir
        self.samples_per_worker = samples_per_worker
        self._counting = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        preload(references)
        started = [ScoringProcess(work, references, base_dir) for _ in range(self.workers)]
        try:
            for process in started:
                self.rewards = process.wait_until_ready()
        except BaseException:
            for process in started:
                process.kill()
            raise
        self._deadlines = {loaded["name"]: loaded["deadline_s"] or deadline_s for loaded in self.rewards}
        self._threads = [threading.Thread(target=self._drive, args=(p,), daemon=True) for p in started]
        for thread in self._threads:
            thread.start()

    def submit(self, calls: Sequence[Call], bodies: Mapping[int, bytes]) -> Future[list[list[Outcome]]]:
        """Queue calls; the future brings the outcomes of each, in order, and never raises.

        Args:
            calls: Of rewards of this pool.
            bodies: The episodes as JSON, by the numbers that the calls' members are.
        """
        places = {member: place for place, member in enumerate(bodies)}
        local = [Call(call.spec, tuple(places[member] for member in call.members)) for call in calls]
        job = _Job(local, list(bodies.values()))
        self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Cancel what is queued, wait for what runs, then end the processes."""
        with contextlib.suppress(queue.Empty):
            while job := self._jobs.get_nowait():
                job.future.cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _drive(self, process: ScoringProcess | None) -> None:
        """Make calls, in a thread of its own, with the processes that come and go."""
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            outcomes: list[list[Outcome]] = []
            while len(outcomes) < len(job.calls):
                process = self._make_rest(process, job, outcomes)
            if process and process.samples >= self.samples_per_worker:
                self._count("recycled")
                process.kill()
                process = None
            job.future.set_result(outcomes)
        if process:
            process.kill()

    def _make_rest(
        self, process: ScoringProcess | None, job: _Job, outcomes: list[list[Outcome]]
    ) -> ScoringProcess | None:
        """Append the outcomes of the calls that are left; returns the process, or None where it was lost."""
        rest = job.calls[len(outcomes) :]
        try:
            if process is None or not process.alive:
                process = ScoringProcess.started(work, self._references, self._base_dir)
        except (PluginError, WorkerLost, OSError) as error:
            reason = Outcome(error=f"no scoring process could be started: {error}")
            outcomes += [[reason] * len(call.members) for call in rest]
            return None
        try:
            process.send(wire.job_header(rest, len(job.bodies)), job.bodies)
            for call in rest:
                reply = process.receive(self._deadlines[call.spec.name])
                outcomes.append([wire.outcome_from_json(row) for row in reply["outcomes"]])
        except WorkerLost as error:
            self._count("hangs" if process.alive else "crashes")
            outcomes.append([Outcome(error=str(error))] * len(job.calls[len(outcomes)].members))
            process.kill()
            return None
        return process

    def _count(self, event: str) -> None:
        with self._counting:
            self.counts[event] += 1
