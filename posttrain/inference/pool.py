"""A pool of inference workers: Ray actors, kept alive, and all on the same policy version."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer
from posttrain.inference.worker import AnswerQuestions, EngineSetup, InferenceWorker

logger = logging.getLogger(__name__)

W = TypeVar("W", bound=InferenceWorker)
J = TypeVar("J")
R = TypeVar("R")


class PoolError(RuntimeError):
    """The pool could not do what was asked; the message names the worker."""


class WorkerLostError(PoolError):
    """A worker died, or does not answer."""


@dataclass(frozen=True)
class Timeouts:
    """How long the pool waits, in seconds.

    Attributes:
        start: For a worker to load its model.
        publish: For a worker to load new weights, or to hand its episodes over.
        probe: Between looks at a busy worker, and for its answer. An engine that is in one step for longer
            has hung, which is noticed within two such intervals.
    """

    start: float = 600.0
    publish: float = 120.0
    probe: float = 30.0


class InferencePool:
    """N workers that divide the jobs they are given between them.

    A worker that dies, or whose engine hangs, is replaced; its successor takes the current weights before it
    serves and repeats the whole share. So each result is returned exactly once, and is the one that an
    undisturbed pool returns.

    Example:
        pool = InferencePool(setup, actors=2, use_gpu=False)
        pool.publish(path, version=1)
        answers = pool.answer(questions, sampling)
        pool.close()
    """

    #: What each actor of the pool runs.
    worker_class: ClassVar[type[InferenceWorker]] = InferenceWorker

    def __init__(
        self,
        setup: EngineSetup,
        *,
        actors: int,
        use_gpu: bool,
        timeouts: Timeouts = Timeouts(),
        max_restarts: int = 3,
    ) -> None:
        """Start the workers, all at once; the first use waits for them.

        Args:
            setup: What each worker is made from.
            actors: How many.
            use_gpu: Whether each takes a GPU; else they divide the cores between them.
            timeouts: No wait is unbounded.
            max_restarts: How often workers may be replaced while they share one list of jobs.
        """
        cores = int(ray.cluster_resources().get("CPU", 1))
        options = {
            "num_cpus": 0,  # workers and learners take turns on the same cores
            "num_gpus": 1 if use_gpu else 0,
            "runtime_env": {
                "env_vars": {
                    "OMP_NUM_THREADS": str(max(1, cores // actors)),
                    "VLLM_LOGGING_LEVEL": "ERROR",
                    "VLLM_NO_USAGE_STATS": "1",
                    "PYTHONWARNINGS": "ignore",
                }
            },
        }
        self._max_restarts = max_restarts
        self._published: tuple[Path, int] | None = None
        # One call at a time, and beside it the watcher's question of how the engine is.
        actor = ray.remote(concurrency_groups={"watch": 1})(self.worker_class)  # pyright: ignore[reportCallIssue]
        self._workers = [
            _Worker(index, partial(actor.options(**options).remote), setup, timeouts)
            for index in range(actors)
        ]

    def answer(self, questions: Sequence[Question], sampling: AnswerSampling) -> list[SampledAnswer]:
        """Have questions answered, once each.

        Args:
            questions: With distinct indices.
            sampling: How.

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

    def divide(self, make_job: Callable[[Sequence[J]], Callable[[W], R]], items: Sequence[J]) -> list[R]:
        """Give every worker a job with its share of the items; a lost worker's share is repeated.

        Args:
            make_job: Makes the job of a share; it is pickled and called with the worker.
            items: What is to be shared out.

        Returns:
            The results of the workers that had a share.

        Raises:
            PoolError: If workers were lost more than `max_restarts` times.
            Exception: What a job raised.
        """
        count = len(self._workers)
        for worker in self._workers:
            share = list(items[worker.index :: count])
            worker.assign(make_job(share) if share else None)
        losses = 0
        while busy := [worker for worker in self._workers if not worker.done]:
            for worker in busy:
                try:
                    worker.advance()
                except WorkerLostError as loss:
                    losses += 1
                    if losses > self._max_restarts:
                        raise PoolError(f"gave up after losing {losses} workers; the last: {loss}") from loss
                    logger.warning("%s; it is replaced and its share is repeated", loss)
                    worker.restart(self._published)
            _wait_for_any(busy)
        return [worker.result for worker in self._workers if worker.result is not None]

    def publish(self, path: Path, version: int) -> None:
        """Have every worker load a checkpoint's weights; return once all of them serve them.

        A worker that has died is replaced by one that starts with these weights.

        Args:
            path: Must stay until the next publish: workers that are replaced load it.
            version: The policy version of these weights.

        Raises:
            PoolError: Naming the worker that did not load them in time.
        """
        self._ready()
        self._published = (path, version)
        answers = [worker.actor.load_weights.remote(path, version) for worker in self._workers]
        for worker, answer in zip(self._workers, answers, strict=True):
            try:
                worker.get(answer, worker.timeouts.publish, f"loading version {version} from {path}")
            except WorkerLostError as loss:
                if isinstance(loss.__cause__, GetTimeoutError):
                    ray.kill(worker.actor)  # whatever it has loaded by now, nobody may sample from it
                    raise
                logger.warning("%s; it is replaced", loss)
                worker.restart(self._published)
        self._ready()

    def probe(self) -> None:
        """Have every idle worker generate a token, and replace those that cannot."""
        self._ready()
        answers = [worker.actor.probe.remote() for worker in self._workers]
        for worker, answer in zip(self._workers, answers, strict=True):
            try:
                worker.get(answer, worker.timeouts.probe, "generating a token")
            except WorkerLostError as loss:
                logger.warning("%s; it is replaced", loss)
                worker.restart(self._published)
        self._ready()

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            ray.kill(worker.actor)

    def _ready(self) -> None:
        for worker in self._workers:
            worker.ready()


class _Worker:
    """One worker's place in the pool: its present actor, and what that has been asked."""

    def __init__(
        self, index: int, make_actor: Callable[[], Any], setup: EngineSetup, timeouts: Timeouts
    ) -> None:
        self.index = index
        self.timeouts = timeouts
        self.actor: Any = None
        self.result: Any = None
        self.done = True
        self._make_actor = make_actor
        self._setup = setup
        self._starting: Any = None
        self.answer: Any = None
        self._job: Callable[..., object] | None = None
        self.restart(None)

    def restart(self, published: tuple[Path, int] | None) -> None:
        """Put a new actor in this place, which takes the published weights as it starts."""
        if self.actor is not None:
            ray.kill(self.actor)
        self.actor = self._make_actor()
        self._starting = self.actor.start.remote(self._setup, published)
        self.answer = None

    def ready(self) -> None:
        """Wait until the model is loaded."""
        if self._starting is not None:
            self.get(self._starting, self.timeouts.start, "loading the model")
            self._starting = None

    def assign(self, job: Callable[..., object] | None) -> None:
        """Set what to do next, if anything; `advance` does the rest, until it is `done`."""
        self._job = job
        self.answer = self.result = None
        self.done = job is None

    def advance(self) -> None:
        """Ask for the result, or collect it, or see whether the worker is alive."""
        if self.answer is None:
            self.ready()
            self.answer = self.actor.do.remote(self._job)
        elif ray.wait([self.answer], timeout=0)[0]:
            self.result = self.get(self.answer, self.timeouts.publish, "handing its results over")
            self.done = True
        else:
            watch = self.actor.step_seconds.options(concurrency_group="watch").remote()
            seconds = self.get(watch, self.timeouts.probe, "at work")
            if seconds > self.timeouts.probe:
                raise WorkerLostError(
                    f"inference worker {self.index} hangs: its engine has been in one step for"
                    f" {seconds:.0f} s"
                )

    def get(self, answer: Any, timeout: float, doing: str) -> Any:
        """The actor's answer, waited for with a limit; what the actor raised is raised here."""
        try:
            return ray.get(answer, timeout=timeout)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else PoolError(str(error))) from None
        except GetTimeoutError as error:
            raise WorkerLostError(
                f"inference worker {self.index} did not answer within {timeout:g} s while {doing}"
            ) from error
        except RayError as error:
            raise WorkerLostError(f"inference worker {self.index} died while {doing}: {error}") from error


def _wait_for_any(busy: Sequence[_Worker]) -> None:
    """Sleep until a worker has finished, or it is time to look at them again."""
    answers = [worker.answer for worker in busy if worker.answer is not None and not worker.done]
    if answers:
        ray.wait(answers, timeout=busy[0].timeouts.probe)
