"""The rollout pool: N workers as Ray actors, kept alive, and all on the same policy version."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer
from posttrain.rollout.episode import Limits
from posttrain.rollout.worker import GroupJob, Rollout, RolloutWorker, WorkerSetup

logger = logging.getLogger(__name__)


#: One call at a time, and beside it the watcher's question of how the engine is.
_RolloutActor: Any = ray.remote(concurrency_groups={"watch": 1})(RolloutWorker)  # pyright: ignore[reportCallIssue]


class RolloutError(RuntimeError):
    """The pool could not do what was asked; the message names the worker."""


class WorkerLostError(RolloutError):
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


class RolloutPool:
    """N workers that divide the groups of a rollout between them.

    A worker that dies, or whose engine hangs, is replaced; its successor takes the current weights before it
    serves and repeats the whole share. So each episode is returned exactly once, and is the one that an
    undisturbed rollout returns.

    Example:
        pool = RolloutPool(setup, actors=2, use_gpu=False)
        pool.publish(path, version=1)
        trajectories = pool.rollout(groups, limits).trajectories
        pool.close()
    """

    def __init__(
        self,
        setup: WorkerSetup,
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
            max_restarts: How often workers may be replaced during one rollout.
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
        self._workers = [_Worker(index, setup, options, timeouts) for index in range(actors)]

    def rollout(self, groups: Sequence[GroupJob], limits: Limits) -> Rollout:
        """Run groups of episodes and score them.

        Args:
            groups: With distinct indices.
            limits: Lengths and temperature of this rollout.

        Returns:
            The trajectories by (group, episode), and the longest wait for rewards.

        Raises:
            RolloutError: If workers were lost more than `max_restarts` times.
            Exception: What a worker raised, such as the reward client's error when its server stays away.
        """
        return _gather(groups, self._divide("rollout", groups, limits))

    def answer(self, questions: Sequence[Question], sampling: AnswerSampling) -> list[SampledAnswer]:
        """Have questions answered, once each.

        Args:
            questions: With distinct indices.
            sampling: How.

        Returns:
            The answers by index.

        Raises:
            RolloutError: If workers were lost more than `max_restarts` times.
        """
        parts = self._divide("answer", questions, sampling)
        answers = sorted((answer for part in parts for answer in part), key=lambda answer: answer.index)
        if [answer.index for answer in answers] != sorted(question.index for question in questions):
            raise RolloutError("the workers answered other questions than they were asked")
        return answers

    def _divide(self, method: str, jobs: Sequence[Any], settings: Any) -> list[Any]:
        """What the workers' method says of their shares of the jobs; a lost worker's share is repeated."""
        count = len(self._workers)
        for worker in self._workers:
            worker.assign(method, list(jobs[worker.index :: count]), settings)
        losses = 0
        while busy := [worker for worker in self._workers if not worker.done]:
            for worker in busy:
                try:
                    worker.advance()
                except WorkerLostError as loss:
                    losses += 1
                    if losses > self._max_restarts:
                        raise RolloutError(
                            f"gave up after losing {losses} workers; the last: {loss}"
                        ) from loss
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
            RolloutError: Naming the worker that did not load them in time.
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

    def __init__(self, index: int, setup: WorkerSetup, options: dict[str, Any], timeouts: Timeouts) -> None:
        self.index = index
        self.timeouts = timeouts
        self.actor: Any = None
        self.result: Any = None
        self.done = True
        self._setup = setup
        self._options = options
        self._starting: Any = None
        self.answer: Any = None
        self._task: tuple[str, list[Any], Any] = ("", [], None)
        self.restart(None)

    def restart(self, published: tuple[Path, int] | None) -> None:
        """Put a new actor in this place, which takes the published weights as it starts."""
        if self.actor is not None:
            ray.kill(self.actor)
        self.actor = _RolloutActor.options(**self._options).remote()
        self._starting = self.actor.start.remote(self._setup, published)
        self.answer = None

    def ready(self) -> None:
        """Wait until the model is loaded."""
        if self._starting is not None:
            self.get(self._starting, self.timeouts.start, "loading the model")
            self._starting = None

    def assign(self, method: str, jobs: list[Any], settings: Any) -> None:
        """Set what to do next; `advance` does the rest, until it is `done`."""
        self._task = (method, jobs, settings)
        self.answer = self.result = None
        self.done = not jobs

    def advance(self) -> None:
        """Ask for the result, or collect it, or see whether the worker is alive."""
        if self.answer is None:
            self.ready()
            method, *arguments = self._task
            self.answer = getattr(self.actor, method).remote(*arguments)
        elif ray.wait([self.answer], timeout=0)[0]:
            self.result = self.get(self.answer, self.timeouts.publish, "handing its results over")
            self.done = True
        else:
            watch = self.actor.step_seconds.options(concurrency_group="watch").remote()
            seconds = self.get(watch, self.timeouts.probe, "at work")
            if seconds > self.timeouts.probe:
                raise WorkerLostError(
                    f"rollout worker {self.index} hangs: its engine has been in one step for {seconds:.0f} s"
                )

    def get(self, answer: Any, timeout: float, doing: str) -> Any:
        """The actor's answer, waited for with a limit; what the actor raised is raised here."""
        try:
            return ray.get(answer, timeout=timeout)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else RolloutError(str(error))) from None
        except GetTimeoutError as error:
            raise WorkerLostError(
                f"rollout worker {self.index} did not answer within {timeout:g} s while {doing}"
            ) from error
        except RayError as error:
            raise WorkerLostError(f"rollout worker {self.index} died while {doing}: {error}") from error


def _wait_for_any(busy: Sequence[_Worker]) -> None:
    """Sleep until a worker has finished, or it is time to look at them again."""
    answers = [worker.answer for worker in busy if worker.answer is not None and not worker.done]
    if answers:
        ray.wait(answers, timeout=busy[0].timeouts.probe)


def _gather(groups: Sequence[GroupJob], parts: Sequence[Rollout]) -> Rollout:
    """Put the workers' parts together; every episode asked for must be there exactly once."""
    trajectories = [trajectory for part in parts for trajectory in part.trajectories]
    trajectories.sort(key=lambda trajectory: (trajectory.group, trajectory.episode))
    expected = sorted((group.group, episode) for group in groups for episode in range(group.size))
    if [(trajectory.group, trajectory.episode) for trajectory in trajectories] != expected:
        raise RolloutError("the workers returned other episodes than they were asked for")
    return Rollout(trajectories, max((part.reward_seconds for part in parts), default=0.0))
