"""A pool of scoring processes, each of which can be killed without harm to the rest.

One thread drives one process: it hands over a sample, waits for each reward's outcome until the deadline,
and replaces the process when it hangs, dies or has served long enough. A hang or a crash costs the one
reward of the one sample that was being scored.
"""

import contextlib
import multiprocessing
import os
import queue
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from posttrain.plugins import PluginError, declared
from posttrain.types import RewardInput
from rewards import wire
from rewards.manager import Outcome, RewardSpec, check_specs
from rewards.sdk import RewardError
from rewards.worker import work

#: A verdict larger than this is a fault of the reward.
MAX_REPLY_BYTES = 1 << 24
#: Loading a plugin file may import much; scoring has its own, shorter deadline.
LOAD_TIMEOUT_S = 60.0
MAX_WORKERS = 16


class WorkerLost(RuntimeError):
    """A scoring process hung past its deadline, or died."""


@dataclass
class _Job:
    specs: list[RewardSpec]
    body: bytes
    future: Future[list[Outcome]] = field(default_factory=Future)


class WorkerPool:
    """Scores samples in killable processes.

    Only the references given here can ever run; whoever submits work cannot name others.

    Args:
        references: The rewards that the workers load.
        workers: Number of processes; None for one a core, up to 16.
        deadline_s: Seconds that one reward may take for one sample.
        base_dir: Folder against which file references are resolved.
        samples_per_worker: A process is replaced after so many samples, which bounds what leaks.

    Attributes:
        rewards: `{name, low, high, summary}` of every reward loaded.
        counts: Samples, errors, hangs, crashes and recycled workers since the start.

    Raises:
        PluginError: If a reference does not lead to a reward.

    Example:
        with WorkerPool(["math"], workers=2, deadline_s=5) as pool:
            pool.submit([RewardSpec("math")], x).result()
    """

    def __init__(
        self,
        references: Sequence[str],
        workers: int | None = None,
        deadline_s: float = 10.0,
        base_dir: Path | None = None,
        samples_per_worker: int = 5000,
    ):
        self.references = list(dict.fromkeys(references))
        self.deadline_s = deadline_s
        self.base_dir = base_dir
        self.samples_per_worker = samples_per_worker
        self.counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._context = multiprocessing.get_context("forkserver")
        # Workers are forked from a process that has imported these: a replacement takes milliseconds.
        self._context.set_forkserver_preload(["rewards.worker", *_builtin_modules(self.references)])
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        started = [_Worker(self) for _ in range(workers or min(os.cpu_count() or 1, MAX_WORKERS))]
        try:
            for worker in started:
                self.rewards = worker.wait_until_ready()
        except BaseException:
            for worker in started:
                worker.kill()
            raise
        self._threads = [threading.Thread(target=self._drive, args=(w,), daemon=True) for w in started]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Samples that no process has begun."""
        return self._jobs.qsize()

    def check(self, specs: Sequence[RewardSpec]) -> None:
        """Refuse rewards that this pool was not started with.

        Raises:
            RewardError: Naming the reward and those that are there.
        """
        check_specs(specs)
        for spec in specs:
            if spec.name not in self.references:
                known = ", ".join(self.references)
                raise RewardError(
                    f"reward {spec.name!r} is not served here; a server serves only the rewards that it was"
                    f" started with: {known}"
                )

    def submit(self, specs: Sequence[RewardSpec], x: RewardInput) -> Future[list[Outcome]]:
        """Queue one sample; the future brings one outcome for each reward, in order, and never raises.

        Raises:
            RewardError: If a reward is not among those of this pool.
            WireError: If the sample cannot be written as JSON.
        """
        self.check(specs)
        job = _Job(list(specs), wire.dumps(wire.input_to_json(x)))
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

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drive(self, worker: "_Worker | None") -> None:
        """One thread's life: score jobs, with the processes that come and go."""
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            outcomes: list[Outcome] = []
            while len(outcomes) < len(job.specs):
                worker = self._score_rest(worker, job, outcomes)
            if worker and worker.samples >= self.samples_per_worker:
                self._count(recycled=1)
                worker.kill()
                worker = None
            self._count(samples=1, errors=sum(bool(outcome.error) for outcome in outcomes))
            job.future.set_result(outcomes)
        if worker:
            worker.kill()

    def _score_rest(self, worker: "_Worker | None", job: _Job, outcomes: list[Outcome]) -> "_Worker | None":
        """Append the outcomes of the rewards that are left; returns the worker, or None where it was lost."""
        try:
            if worker is None or not worker.process.is_alive():
                worker = self._start()
        except (PluginError, WorkerLost, OSError) as error:
            reason = Outcome(error=f"no scoring process could be started: {error}")
            outcomes += [reason] * (len(job.specs) - len(outcomes))
            return None
        try:
            worker.send(job.specs[len(outcomes) :], job.body)
            while len(outcomes) < len(job.specs):
                outcomes.append(wire.outcome_from_json(worker.receive(self.deadline_s)))
        except WorkerLost as error:
            hung = worker.process.is_alive()
            self._count(hangs=int(hung), crashes=int(not hung))
            outcomes.append(Outcome(error=str(error)))
            worker.kill()
            return None
        return worker

    def _start(self) -> "_Worker":
        worker = _Worker(self)
        try:
            worker.wait_until_ready()
        except (PluginError, WorkerLost):
            worker.kill()
            raise
        return worker

    def _count(self, **events: int) -> None:
        with self._counting:
            self.counts.update(events)


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, pool: WorkerPool):
        self.pipe, theirs = pool._context.Pipe()
        self.samples = 0
        self.process = pool._context.Process(
            target=work, args=(theirs, pool.references, pool.base_dir), daemon=True
        )
        self.process.start()
        theirs.close()  # so that its death is the end of our file

    def wait_until_ready(self) -> list[dict[str, Any]]:
        """What it has loaded.

        Raises:
            PluginError: If a reward could not be loaded.
            WorkerLost: If loading hung or killed the process.
        """
        message = self.receive(LOAD_TIMEOUT_S)
        if "failed" in message:
            raise PluginError(message["failed"])
        return message["ready"]

    def send(self, specs: Sequence[RewardSpec], body: bytes) -> None:
        """Hand over a sample, for one reply a reward."""
        self.samples += 1
        try:
            self.pipe.send_bytes(wire.dumps([wire.spec_to_json(spec) for spec in specs]))
            self.pipe.send_bytes(body)
        except OSError:
            raise self._lost() from None

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next reply.

        Raises:
            WorkerLost: If none came in time, or the process died or wrote nonsense.
        """
        if not wait([self.pipe], timeout_s):
            raise WorkerLost(f"took longer than its deadline of {timeout_s:g} s and was killed")
        try:
            return wire.loads(self.pipe.recv_bytes(MAX_REPLY_BYTES))
        except (EOFError, OSError, wire.WireError):
            raise self._lost() from None

    def _lost(self) -> WorkerLost:
        self.process.join(5)  # for its exit code, where it is about to die
        return WorkerLost(f"ended its scoring process (exit code {self.process.exitcode})")

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.join()
        self.pipe.close()


def _builtin_modules(references: Sequence[str]) -> list[str]:
    modules = declared("posttrain.rewards")
    own = [modules[name].partition(":")[0] for name in references if name in modules]
    return [name for name in own if name.startswith("rewards.builtin.")]
