"""The keeper of one worker's place in a pool: a thread that starts, watches and replaces the worker."""

import collections
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from posttrain.files.reading import seconds_to_read
from posttrain.inference.jobs import Job, Report
from posttrain.inference.worker import EngineSetup, InferenceWorker
from posttrain.run.actors import Actor

logger = logging.getLogger(__name__)

R = TypeVar("R")

#: Longest step of an engine, in seconds. Steps take far less; but on a GPU a kernel may be compiled for a
#: shape that the first steps did not have.
CPU_STEP_S, GPU_STEP_S = 30.0, 120.0
#: Seconds between two looks at a worker of which nothing is heard, or less where steps are shorter.
LOOK_S = 5.0


class PoolError(RuntimeError):
    """The pool could not do what was asked; the message names the worker."""


class WorkerLostError(PoolError):
    """A worker died, or does not answer."""


@dataclass(frozen=True)
class Timeouts:
    """How long the pool waits, in seconds.

    Attributes:
        fetch: For a worker to download its model. A download that gets no further ends by itself, so this is
            what 100 GB take at 5 MB/s.
        start: For a worker to load its model, compile and sample for the first time, beside the time in which
            a slow disk reads the model.
        answer: For a worker to hand over its results, or to answer what it is asked between two steps.
        step: For one step of an engine. An idle worker must generate a token within it, and a busy one whose
            present step has taken longer counts as hung.
    """

    fetch: float = 6 * 3600.0
    start: float = 600.0
    answer: float = 120.0
    step: float = CPU_STEP_S

    @classmethod
    def usual(cls, use_gpu: bool) -> "Timeouts":
        """Return those that fit engines on GPUs, or on CPUs."""
        return cls(step=GPU_STEP_S if use_gpu else CPU_STEP_S)


@dataclass(eq=False)
class Entry:
    """A job on its way through a pool.

    Attributes:
        ticket: Its number.
        job: What is to be done.
        future: Where its result goes.
        place: The place that it was dealt to; None where any worker may do it.
        losses: How many workers were lost that held it.
    """

    ticket: int
    job: Job[Any, Any]
    future: Future[Any]
    place: int | None = None
    losses: int = 0


class Desk(Protocol):
    """Who gives jobs to keepers, and is told what becomes of them."""

    @property
    def lock(self) -> threading.RLock:
        """Guards everything that is known of jobs and workers."""
        ...

    def receive(self, keeper: "Keeper", report: Report) -> None:
        """Take a worker's report."""
        ...

    def fail_jobs(self, keeper: "Keeper", tickets: Iterable[int], error: Exception) -> None:
        """End jobs that a worker could not take."""
        ...

    def lose(self, keeper: "Keeper", loss: WorkerLostError) -> bool:
        """Take back a lost worker's jobs; return whether it is to be replaced."""
        ...

    def give_up(self, error: Exception) -> None:
        """Fail every job: a worker cannot be started."""
        ...


class Keeper:
    """One worker's place in the pool, and the actor that fills it at present.

    Attributes:
        index: Number of the place.
        actor: The actor; None before the first.
        serving: Whether its model is loaded, and its weights are the pool's newest.
        waiting: Whether its model is loaded, and it waits for the weights that are published next.
        served_once: Whether this place has had a worker that served.
        held: The jobs that the worker has, by ticket.
        inbox: The jobs that it is to get once it serves.
        unfinished: Sequences of its jobs that are not over, as far as is known.
        wanting: How many of these want the engine.
        losses: Workers lost one after another with no job done between.
        lock: The desk's; guards all of these.

    Args:
        index: Number of the place.
        make_actor: Starts an actor.
        setup: What each worker is made from.
        timeouts: Limits of every wait.
        desk: Who is told what happens.
        serve: Brings the newest weights to a worker that has loaded its model, and lets it serve.
    """

    def __init__(
        self,
        index: int,
        make_actor: Callable[[], Actor[InferenceWorker]],
        setup: EngineSetup,
        timeouts: Timeouts,
        desk: Desk,
        serve: Callable[["Keeper"], None],
    ) -> None:
        self.index, self.timeouts, self.lock = index, timeouts, desk.lock
        self.actor: Actor[InferenceWorker] | None = None
        self.serving, self.waiting, self.served_once, self.closed = False, False, False, False
        self.held: dict[int, Entry] = {}
        self.inbox: collections.deque[Entry] = collections.deque()
        self.unfinished = self.wanting = self.losses = 0
        self._make_actor, self._setup, self._desk, self._serve = make_actor, setup, desk, serve
        self._loss: WorkerLostError | None = None
        self._takes: list[tuple[ObjectRef[None], list[int]]] = []
        self._thread = threading.Thread(target=self._keep, name=f"keeper-{index}", daemon=True)

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def expect(self, entry: Entry) -> None:
        """Count a job as this worker's, to be sent by `send`; the lock is held."""
        self.inbox.append(entry)
        self.unfinished += entry.job.size
        self.wanting += entry.job.size

    def send(self) -> None:
        """Give the worker the jobs of its inbox, all at once; the lock is held."""
        assert self.actor is not None
        entries = [entry for entry in self.inbox if not entry.future.cancelled()]
        self.inbox.clear()
        self.held |= {entry.ticket: entry for entry in entries}
        if entries:
            jobs = [(entry.ticket, entry.job) for entry in entries]
            taken = self.actor.call(InferenceWorker.take, jobs)
            self._takes.append((taken, [entry.ticket for entry in entries]))

    def condemn(self, actor: Actor[InferenceWorker], loss: WorkerLostError) -> None:
        """Have an actor replaced that failed someone else than this keeper."""
        with self.lock:
            if actor is not self.actor or self.closed:
                return
            self._loss = loss
            self.serving = self.waiting = False
        actor.kill()

    def join(self) -> None:
        """Wait for the thread, whose worker is killed, for a limited time."""
        self._thread.join(self.timeouts.step)

    def get(self, answer: "ObjectRef[R]", timeout: float, doing: str) -> R:
        """Wait for the actor's answer, for a limited time.

        Args:
            answer: What a call returned.
            timeout: Seconds to wait.
            doing: What the actor does, for the messages of errors.

        Raises:
            WorkerLostError: If the actor died, or did not answer in time.
            Exception: The exception that the actor raised.
        """
        name = f"inference worker {self.index}"
        try:
            return ray.get(answer, timeout=timeout)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else PoolError(str(error))) from None
        except GetTimeoutError as error:
            raise WorkerLostError(f"{name} did not answer within {timeout:.0f} s while {doing}") from error
        except RayError as error:
            raise WorkerLostError(f"{name} died while {doing}: {error}") from error

    def _keep(self) -> None:
        """Fill the place until the pool is closed."""
        again = True
        while again:
            try:
                self._start()
                self._attend()
            except WorkerLostError as loss:
                with self.lock:
                    loss, self._loss = self._loss or loss, None
                again = self._desk.lose(self, loss)
                if self.actor is not None and not self.closed:
                    self.actor.kill()
            except Exception as error:
                self._desk.give_up(error)
                again = False

    def _start(self) -> None:
        """Start an actor, and let it serve once it has its model and the pool's weights."""
        actor = self._make_actor()
        with self.lock:
            self.actor, self._takes = actor, []
            closed = self.closed
        if closed:
            actor.kill()
            raise WorkerLostError("the pool is closed")
        fetching = actor.call(InferenceWorker.fetch, self._setup.checkpoint)
        starting = actor.call(InferenceWorker.start, self._setup)
        self.get(fetching, self.timeouts.fetch, "downloading the model")
        limit = self.timeouts.start + seconds_to_read(self._setup.checkpoint)
        self.get(starting, limit, "loading the model")
        self._serve(self)

    def _attend(self) -> None:
        """Take the worker's reports, until it is lost.

        Raises:
            WorkerLostError: If it dies, does not answer, or its engine fails or hangs.
        """
        actor = self.actor
        assert actor is not None
        wait = min(LOOK_S, self.timeouts.step)
        report = actor.watch(InferenceWorker.report, wait)
        while True:
            if ray.wait([report], timeout=wait)[0]:
                try:
                    found = self.get(report, self.timeouts.answer, self._doing())
                except WorkerLostError:
                    raise
                except Exception as error:
                    raise WorkerLostError(f"inference worker {self.index} failed: {error}") from error
                report = actor.watch(InferenceWorker.report, wait)
                self._desk.receive(self, found)
                seconds = found.step_seconds
            else:
                seconds = self.get(
                    actor.watch(InferenceWorker.step_seconds), self.timeouts.step, self._doing()
                )
            if seconds > self.timeouts.step:
                raise WorkerLostError(
                    f"inference worker {self.index} hangs: its engine has been in one step for"
                    f" {seconds:.0f} s"
                )
            self._check_takes()

    def _doing(self) -> str:
        """Say what the worker does at present."""
        return "at work" if self.held else "idle"

    def _check_takes(self) -> None:
        """Fail the jobs that the worker could not even begin, such as those that it cannot unpickle."""
        with self.lock:
            takes, self._takes = self._takes, []
        for taken, tickets in takes:
            if not ray.wait([taken], timeout=0)[0]:
                with self.lock:
                    self._takes.append((taken, tickets))
                continue
            try:
                self.get(taken, self.timeouts.answer, "taking jobs")
            except WorkerLostError:
                raise
            except Exception as error:
                self._desk.fail_jobs(self, tickets, error)
