"""A pool of inference workers: Ray actors, kept alive, and all on the same policy version."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from functools import partial
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError

from posttrain.inference.answers import AnswerQuestion, AnswerSampling, Question, SampledAnswer
from posttrain.inference.dispatch import Dispatcher
from posttrain.inference.jobs import Job
from posttrain.inference.keeper import Keeper, PoolError, Timeouts, WorkerLostError
from posttrain.inference.weights import PublishError, Weights, WeightsSuperseded
from posttrain.inference.worker import EngineSetup, InferenceWorker
from posttrain.rendering.pixel_limits import RANKS_HERE
from posttrain.run.actors import Actor, kill_all
from posttrain.run.placement import Place

P = ParamSpec("P")
R = TypeVar("R")


class InferencePool:
    """Workers that do the jobs they are given, many at once, and return each as soon as it is done.

    A worker that dies, or whose engine hangs, is replaced, and the jobs that it held go to others; its
    successor takes the newest weights before it serves. So each job's result is returned exactly once, and is
    the one that an undisturbed pool returns, as far as the engine's samples repeat (on a GPU see
    `vllm_engine`).

    Args:
        setup: What each worker is made from.
        actors: Number of workers.
        use_gpu: Whether each takes a GPU; else they divide the cores between them.
        places: Where each worker lives; None leaves that to Ray.
        busy_beside: Number of processes that compute at the same time on the same machine, one core each.
        timeouts: Limits of every wait; the usual ones if None.
        max_restarts: How many workers that hold a job may be lost before the job fails; and how many in one
            place, one after another and with no job done between, before the pool gives up.

    Example:
        pool = InferencePool(setup, actors=2, use_gpu=False)
        pool.publish(CheckpointWeights(path, version=1))
        answers = pool.answer(questions, sampling)
        futures = pool.submit(jobs)
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
        places: Sequence[Place] | None = None,
        busy_beside: int = 0,
        timeouts: Timeouts | None = None,
        max_restarts: int = 3,
    ) -> None:
        """Start the workers, all at once; the first use waits for them."""
        cores = int(ray.cluster_resources().get("CPU", 1)) - busy_beside
        environment = {
            "OMP_NUM_THREADS": str(max(1, cores // actors)),
            RANKS_HERE: str(actors),
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        make_actor = partial(
            Actor[InferenceWorker], self.worker_class, use_gpu=use_gpu, environment=environment, watched=True
        )
        self._timeouts = timeouts or Timeouts.usual(use_gpu)
        self._publishing = threading.Lock()
        self._weights: Weights | None = None
        self._dispatcher = Dispatcher(
            setup,
            [partial(make_actor, place=place) for place in places or [None] * actors],
            self._serve,
            timeouts=self._timeouts,
            max_restarts=max_restarts,
        )
        self._dispatcher.begin()

    @property
    def actors(self) -> int:
        """Number of workers."""
        return len(self._keepers)

    @property
    def _keepers(self) -> list[Keeper]:
        return self._dispatcher.keepers

    def submit(self, jobs: Sequence[Job[Any, R]]) -> list[Future[R]]:
        """Have jobs done, those given first before others.

        Args:
            jobs: They are pickled, and may be done again where a worker is lost.

        Returns:
            A future for each, which has the job's result or the exception that it raised, or a PoolError once
            `max_restarts` workers were lost with the job. Cancelling it cancels the job.

        Raises:
            PoolError: If the pool is closed.
            Exception: What kept a worker from starting.
        """
        return self._dispatcher.submit(jobs)

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
        answers = collect(self.submit([AnswerQuestion(question, sampling) for question in questions]))
        return sorted(answers, key=lambda answer: answer.index)

    def publish(self, weights: Weights) -> None:
        """Let every worker serve weights; one that starts takes them before it serves.

        A worker that has died is replaced. So is one that does not load them, since whatever it has loaded by
        then, nobody may sample from it.

        Raises:
            PoolError: Naming the worker that did not load them in time.
        """
        with self._publishing:
            with self._dispatcher.lock:
                self._dispatcher.check()
                self._weights = weights
                waiting = [keeper for keeper in self._keepers if keeper.waiting]
                left = {
                    keeper.index: keeper.actor for keeper in self._keepers if keeper.serving or keeper.waiting
                }
            while left:
                indices, actors = list(left), [actor for actor in left.values() if actor is not None]
                try:
                    weights.bring(actors)
                    break
                except PublishError as error:
                    reasons = {indices[index]: reason for index, reason in error.reasons.items()}
                gone = {index for index in reasons if _is_gone(left[index], self._timeouts.step)}
                losses = {
                    index: WorkerLostError(f"inference worker {index} {reason}")
                    for index, reason in reasons.items()
                    if index in gone or not gone
                }
                for index, loss in losses.items():
                    actor = left[index]
                    assert actor is not None
                    self._keepers[index].condemn(actor, loss)
                if not gone:
                    raise PoolError("; ".join(map(str, losses.values())))
                # Those that failed because of the one that is gone try again without it.
                left = {index: left[index] for index in reasons if index not in gone}
            for keeper in waiting:
                if keeper.waiting:  # not condemned
                    self._dispatcher.let_serve(keeper)

    def on_each(
        self,
        method: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> dict[int, R]:
        """Call a worker's method on every worker that serves, between two steps of its engine.

        Args:
            method: A method of the worker's class.
            *args: Its arguments.
            **kwargs: Likewise.

        Returns:
            What each returned, by the worker's index. One that dies or does not answer is replaced, and is
            not among them.

        Raises:
            Exception: The exception that the method raised.
        """
        return self._ask_each(self._timeouts.answer, f"asked to {method.__name__}", method, *args, **kwargs)

    def probe(self) -> None:
        """Have every idle worker generate a token, and replace those that cannot."""
        self.ready()
        self._ask_each(self._timeouts.step, "generating a token", InferenceWorker.probe)
        self.ready()

    def ready(self) -> None:
        """Wait until every worker serves.

        Raises:
            Exception: What kept a worker from starting.
        """
        self._dispatcher.ready()

    def close(self) -> None:
        """Cancel every job and stop the workers; return when their processes are gone."""
        self._dispatcher.close()
        kill_all([keeper.actor for keeper in self._keepers if keeper.actor is not None])
        for keeper in self._keepers:
            keeper.join()

    def _serve(self, keeper: Keeper) -> None:
        """Bring the newest weights to a worker that has loaded its model, and let it serve."""
        with self._publishing:
            actor, weights = keeper.actor, self._weights
            assert actor is not None
            if weights is not None:
                try:
                    weights.bring([actor])
                except WeightsSuperseded:
                    self._dispatcher.let_wait(keeper)
                    return
                except PublishError as error:
                    raise WorkerLostError(f"inference worker {keeper.index} {error.reasons[0]}") from error
            self._dispatcher.let_serve(keeper)

    def _ask_each(
        self,
        timeout: float,
        doing: str,
        method: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> dict[int, R]:
        """Call a method on every worker that serves; see `on_each`."""
        with self._dispatcher.lock:
            self._dispatcher.check()
            asked = [
                (keeper, keeper.actor, keeper.actor.call(method, *args, **kwargs))
                for keeper in self._keepers
                if keeper.serving and keeper.actor is not None
            ]
        found: dict[int, R] = {}
        for keeper, actor, answer in asked:
            try:
                found[keeper.index] = keeper.get(answer, timeout, doing)
            except WorkerLostError as loss:
                keeper.condemn(actor, loss)
        return found


def collect(futures: Sequence[Future[R]], on_result: Callable[[R], object] = lambda _: None) -> list[R]:
    """Wait for jobs, and return their results in order; where one fails, the others are cancelled.

    Args:
        futures: What `InferencePool.submit` returned.
        on_result: Called with each result as soon as it is there.

    Raises:
        Exception: The first failure.
    """
    try:
        for future in as_completed(futures):
            on_result(future.result())
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def _is_gone(actor: Actor[InferenceWorker] | None, timeout: float) -> bool:
    """Tell whether an actor's process has died; one that does not answer may still be there."""
    if actor is None:
        return True
    try:
        ray.get(actor.watch(InferenceWorker.step_seconds), timeout=timeout)
    except GetTimeoutError:
        return False
    except RayError:
        return True
    return False
