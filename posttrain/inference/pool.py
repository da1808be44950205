"""A pool of inference workers: Ray actors, kept alive, and all on the same policy version."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from posttrain.files.reading import seconds_to_read
from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer
from posttrain.inference.worker import AnswerQuestions, EngineSetup, InferenceWorker
from posttrain.rendering.pixel_limits import RANKS_HERE
from posttrain.run.actors import Actor, kill_all

logger = logging.getLogger(__name__)

J = TypeVar("J")
R = TypeVar("R")


#: Longest step of an engine, in seconds. Steps take far less; but on a GPU a kernel may be compiled for a
#: shape that the first steps did not have, and images are read within steps, from a disk that may stall.
CPU_STEP_S, GPU_STEP_S = 30.0, 120.0
#: Seconds between two looks at a busy worker, or less where steps are shorter.
LOOK_S = 30.0


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
        publish: For a worker to load new weights, beside the time to read them; or to hand over its results.
        step: For one step of an engine. An idle worker must generate a token within it, and a busy one whose
            present step has taken longer counts as hung.
    """

    fetch: float = 6 * 3600.0
    start: float = 600.0
    publish: float = 120.0
    step: float = CPU_STEP_S

    @classmethod
    def usual(cls, use_gpu: bool) -> "Timeouts":
        """Return those that fit engines on GPUs, or on CPUs."""
        return cls(step=GPU_STEP_S if use_gpu else CPU_STEP_S)


class InferencePool:
    """Workers that divide the jobs they are given between them.

    A worker that dies, or whose engine hangs, is replaced; its successor takes the current weights before it
    serves and repeats the whole share. So each result is returned exactly once, and is the one that an
    undisturbed pool returns, as far as the engine's samples repeat (on a GPU see `vllm_engine`).

    Args:
        setup: What each worker is made from.
        actors: Number of workers.
        use_gpu: Whether each takes a GPU; else they divide the cores between them.
        timeouts: Limits of every wait; the usual ones if None.
        max_restarts: How many workers may be replaced while they share one list of jobs.

    Example:
        pool = InferencePool(setup, actors=2, use_gpu=False)
        pool.publish(path, version=1)
        answers = pool.answer(questions, sampling)
        pool.close()
    """

    #: Class of the object in each worker's process.
    worker_class: ClassVar[type[InferenceWorker]] = InferenceWorker

    def __init__(
        self,
        setup: EngineSetup,
        *,
        actors: int,
        use_gpu: bool,
        timeouts: Timeouts | None = None,
        max_restarts: int = 3,
    ) -> None:
        """Start the workers, all at once; the first use waits for them."""
        cores = int(ray.cluster_resources().get("CPU", 1))
        environment = {
            "OMP_NUM_THREADS": str(max(1, cores // actors)),
            RANKS_HERE: str(actors),
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        make_actor = partial(
            Actor[InferenceWorker],
            self.worker_class,
            use_gpu=use_gpu,
            environment=environment,
            watched=True,
        )
        self._max_restarts = max_restarts
        self._published: tuple[Path, int] | None = None
        limits = timeouts or Timeouts.usual(use_gpu)
        self._workers = [_Worker(index, make_actor, setup, limits) for index in range(actors)]

    def answer(self, questions: Sequence[Question], sampling: AnswerSampling) -> list[SampledAnswer]:
        """Have questions answered, each once.

        Args:
            questions: The questions, with distinct indices.
            sampling: How answers are sampled.

        Returns:
            The answers by index.

        Raises:
            PoolError: If workers were lost more than `max_restarts` times.
        """
        parts = self.divide(partial(AnswerQuestions, sampling=sampling), questions)
        answers = sorted((answer for part in parts for answer in part), key=lambda answer: answer.index)
        if [answer.index for answer in answers] != sorted(question.index for question in questions):
            raise PoolError("the workers answered other questions than they were asked")
        return answers

    def divide(self, make_job: Callable[[Sequence[J]], Callable[..., R]], items: Sequence[J]) -> list[R]:
        """Give every worker a job with its share of the items; a lost worker's share is repeated.

        Args:
            make_job: Makes the job of a share; the job is pickled and called with the worker.
            items: The items to share out.

        Returns:
            The results of the workers that had a share.

        Raises:
            PoolError: If workers were lost more than `max_restarts` times.
            Exception: The exception that a job raised.
        """
        count = len(self._workers)
        parts = [list(items[worker.index :: count]) for worker in self._workers]
        shares = [
            _Share(worker, make_job(part)) for worker, part in zip(self._workers, parts, strict=True) if part
        ]
        losses = 0
        while busy := [share for share in shares if not share.results]:
            for share in busy:
                try:
                    share.advance()
                except WorkerLostError as loss:
                    losses += 1
                    if losses > self._max_restarts:
                        raise PoolError(f"gave up after losing {losses} workers; the last: {loss}") from loss
                    logger.warning("%s; it is replaced and its share is repeated", loss)
                    share.repeat(self._published)
            _wait_for_any(busy)
        return [result for share in shares for result in share.results]

    def publish(self, path: Path, version: int) -> None:
        """Have every worker load a checkpoint's weights; return once all of them serve them.

        A worker that has died is replaced by one that starts with these weights.

        Args:
            path: The checkpoint. It must stay until the next publish: workers that are replaced load it.
            version: The policy version of these weights.

        Raises:
            PoolError: Naming the worker that did not load them in time.
        """
        self._ready()
        self._published = (path, version)
        answers = [worker.actor.call(InferenceWorker.load_weights, path, version) for worker in self._workers]
        reading = seconds_to_read(path)
        for worker, answer in zip(self._workers, answers, strict=True):
            try:
                limit = worker.timeouts.publish + reading
                worker.get(answer, limit, f"loading version {version} from {path}")
            except WorkerLostError as loss:
                if isinstance(loss.__cause__, GetTimeoutError):
                    worker.actor.kill()  # whatever it has loaded by now, nobody may sample from it
                    raise
                logger.warning("%s; it is replaced", loss)
                worker.restart(self._published)
        self._ready()

    def probe(self) -> None:
        """Have every idle worker generate a token, and replace those that cannot."""
        answers = [worker.actor.call(InferenceWorker.probe) for worker in self._workers]
        for worker, answer in zip(self._workers, answers, strict=True):
            try:
                worker.ready()
                worker.get(answer, worker.timeouts.step, "generating a token")
            except WorkerLostError as loss:
                logger.warning("%s; it is replaced", loss)
                worker.restart(self._published)
        self._ready()

    def close(self) -> None:
        """Stop the workers; return when their processes are gone."""
        kill_all([worker.actor for worker in self._workers])

    def _ready(self) -> None:
        """Wait until every worker has loaded its model."""
        for worker in self._workers:
            worker.ready()


class _Worker:
    """One worker's place in the pool, and the actor that fills it at present."""

    def __init__(
        self,
        index: int,
        make_actor: Callable[[], Actor[InferenceWorker]],
        setup: EngineSetup,
        timeouts: Timeouts,
    ) -> None:
        self.index = index
        self.timeouts = timeouts
        self._make_actor = make_actor
        self._setup = setup
        self._start(None)

    def restart(self, published: tuple[Path, int] | None) -> None:
        """Put a new actor in this place, which takes the published weights as it starts."""
        self.actor.kill()
        self._start(published)

    def _start(self, published: tuple[Path, int] | None) -> None:
        self.actor = self._make_actor()
        self._fetching = self.actor.call(InferenceWorker.fetch, self._setup.checkpoint)
        self._starting: ObjectRef[int] | None = self.actor.call(InferenceWorker.start, self._setup, published)
        weights = self._setup.checkpoint if published is None else published[0]
        self._start_limit = self.timeouts.start + seconds_to_read(weights)

    def ready(self) -> None:
        """Wait until the model is loaded."""
        if self._starting is not None:
            self.get(self._fetching, self.timeouts.fetch, "downloading the model")
            self.get(self._starting, self._start_limit, "loading the model")
            self._starting = None

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
        try:
            return ray.get(answer, timeout=timeout)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else PoolError(str(error))) from None
        except GetTimeoutError as error:
            raise WorkerLostError(
                f"inference worker {self.index} did not answer within {timeout:.0f} s while {doing}"
            ) from error
        except RayError as error:
            raise WorkerLostError(f"inference worker {self.index} died while {doing}: {error}") from error


class _Share(Generic[R]):
    """One worker's job.

    Args:
        worker: Who does it.
        job: The job; called with the worker.

    Attributes:
        answer: The call under way, if there is one.
        results: The job's result, once it is there.
    """

    def __init__(self, worker: _Worker, job: Callable[..., R]) -> None:
        self.worker = worker
        self.answer: ObjectRef[R] | None = None
        self.results: list[R] = []
        self._job = job

    def advance(self) -> None:
        """Ask for the result, or collect it, or check that the worker is alive.

        Raises:
            WorkerLostError: If the worker died, or its engine hangs.
            Exception: The exception that the job raised.
        """
        worker = self.worker
        if self.answer is None:
            worker.ready()
            self.answer = worker.actor.call(InferenceWorker.do, self._job)
        elif ray.wait([self.answer], timeout=0)[0]:
            self.results = [worker.get(self.answer, worker.timeouts.publish, "handing its results over")]
        else:
            watch = worker.actor.watch(InferenceWorker.step_seconds)
            seconds = worker.get(watch, worker.timeouts.step, "at work")
            if seconds > worker.timeouts.step:
                raise WorkerLostError(
                    f"inference worker {worker.index} hangs: its engine has been in one step for"
                    f" {seconds:.0f} s"
                )

    def repeat(self, published: tuple[Path, int] | None) -> None:
        """Replace the worker, and begin again with its successor."""
        self.worker.restart(published)
        self.answer = None


def _wait_for_any(shares: Sequence[_Share[R]]) -> None:
    """Sleep until a worker has finished, or it is time to look at them again."""
    answers = [share.answer for share in shares if share.answer is not None and not share.results]
    if answers:
        ray.wait([*answers], timeout=min(LOOK_S, shares[0].worker.timeouts.step))
