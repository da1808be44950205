"""Jobs and workers under seeded faults: every job ends once, and only those of a lost worker are repeated."""

import gc
import time
import weakref
from collections import Counter
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from posttrain.config import EngineConfig, ModelConfig
from posttrain.inference.dispatch import Dispatcher
from posttrain.inference.jobs import Outcome, Report
from posttrain.inference.keeper import Keeper, PoolError, Timeouts, WorkerLostError
from posttrain.inference.pool import collect
from posttrain.inference.worker import EngineSetup, InferenceWorker

CAPACITY = 8


class FakeActor:
    """Notes what it is given to do."""

    def __init__(self) -> None:
        self.jobs: dict[int, Any] = {}
        self.cancelled: list[int] = []

    def call(self, method: Any, *arguments: Any) -> None:
        if method is InferenceWorker.take:
            if any(job.size < 0 for _, job in arguments[0]):
                raise TypeError("cannot pickle it")
            self.jobs |= dict(arguments[0])
        elif method is InferenceWorker.cancel:
            self.cancelled.append(arguments[0])
            self.jobs.pop(arguments[0], None)


class Number:
    def __init__(self, number: int, size: int = 2) -> None:
        self.number, self.size = number, size

    async def __call__(self, worker: object) -> int:
        return self.number


def dispatcher_of(workers: int, lockstep: bool, max_restarts: int = 1000) -> Dispatcher:
    setup = EngineSetup(
        model=ModelConfig(),
        checkpoint=Path("a/model"),
        engine_config=EngineConfig(max_num_seqs=CAPACITY),
        max_length=100,
        lockstep=lockstep,
    )
    made = Dispatcher(
        setup,
        [FakeActor] * workers,  # pyright: ignore[reportArgumentType]
        lambda keeper: None,
        timeouts=Timeouts(),
        max_restarts=max_restarts,
    )
    for keeper in made.keepers:
        begin_anew(made, keeper)
    return made


def begin_anew(dispatcher: Dispatcher, keeper: Keeper) -> None:
    """Let a place have a new actor that serves."""
    keeper.actor = FakeActor()  # pyright: ignore[reportAttributeAccessIssue]
    dispatcher.let_serve(keeper)


def work(dispatcher: Dispatcher, keeper: Keeper, count: int) -> None:
    """Let a worker report the ends of some of its jobs."""
    jobs = actor_of(keeper).jobs
    outcomes = [Outcome(ticket, jobs.pop(ticket).number) for ticket in list(jobs)[:count]]
    left = sum(job.size for job in jobs.values())
    dispatcher.receive(keeper, Report(outcomes, left, left, 0.0))


def actor_of(keeper: Keeper) -> FakeActor:
    actor: Any = keeper.actor
    return actor


class Large:
    """A result that takes memory."""


def test_results_go_with_their_futures() -> None:
    """Without waiting for the collector of garbage."""
    dispatcher = dispatcher_of(1, lockstep=False)
    [keeper] = dispatcher.keepers
    result = Large()
    left = weakref.ref(result)
    gc.disable()
    try:
        [future] = dispatcher.submit([Number(0)])
        dispatcher.receive(keeper, Report([Outcome(0, result)], 0, 0, 0.0))
        assert future.result() is result
        del future, result
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("lockstep", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_killed_every_job_ends_once(lockstep: bool, seed: int) -> None:
    random = Random(seed)
    dispatcher = dispatcher_of(3, lockstep)
    futures: list[Future[int]] = []
    ends: Counter[int] = Counter()
    cancelled: set[int] = set()
    submitted = 0
    for _ in range(2000):
        if submitted < 200 and random.random() < 0.1:
            count = random.randint(1, 12)
            new = dispatcher.submit([Number(submitted + index) for index in range(count)])
            for index, future in enumerate(new):
                future.add_done_callback(lambda _, number=submitted + index: ends.update([number]))
            futures += new
            submitted += count
        keeper = random.choice(dispatcher.keepers)
        if random.random() < 0.1:
            held = set(keeper.held)
            others = {ticket for each in dispatcher.keepers if each is not keeper for ticket in each.held}
            assert dispatcher.lose(keeper, WorkerLostError("it died"))
            assert not keeper.held
            assert held.isdisjoint(others)
            assert others <= {ticket for each in dispatcher.keepers for ticket in each.held}
            if random.random() < 0.5:
                work(dispatcher, dispatcher.keepers[0], 2)
            begin_anew(dispatcher, keeper)
        elif futures and random.random() < 0.02:
            number = random.randrange(len(futures))
            if futures[number].cancel():
                cancelled.add(number)
        else:
            work(dispatcher, keeper, random.randint(0, 3))
    assert all(future.done() for future in futures)
    assert ends == Counter(range(submitted))
    for number, future in enumerate(futures):
        assert future.cancelled() if number in cancelled else future.result() == number
    assert not any(actor_of(keeper).jobs for keeper in dispatcher.keepers)


def test_jobs_go_to_the_worker_with_the_least_to_do_while_it_has_room() -> None:
    dispatcher = dispatcher_of(2, lockstep=False)
    dispatcher.submit([Number(index) for index in range(20)])
    first, second = dispatcher.keepers
    assert [len(actor_of(keeper).jobs) for keeper in (first, second)] == [4, 4]
    # One is through with half of its sequences, though with none of its groups.
    dispatcher.receive(first, Report([], 8, 4, 0.0))
    assert [len(actor_of(keeper).jobs) for keeper in (first, second)] == [6, 4]
    # Sequences at a tool want no engine, but there is an end to how many there are.
    dispatcher.receive(second, Report([], 16, 0, 0.0))
    assert [len(actor_of(keeper).jobs) for keeper in (first, second)] == [6, 4]
    # Nor is one needed by what does not use it, such as to count the tokens of prompts.
    dispatcher.submit([Number(index, size=0) for index in range(20, 22)])
    assert [len(actor_of(keeper).jobs) for keeper in (first, second)] == [6, 6]


def test_in_lockstep_a_worker_gets_every_nth_job_at_once_also_again() -> None:
    dispatcher = dispatcher_of(2, lockstep=True)
    dispatcher.submit([Number(index) for index in range(21)])
    first, second = dispatcher.keepers
    assert [job.number for job in actor_of(second).jobs.values()] == list(range(1, 21, 2))
    work(dispatcher, second, 3)
    dispatcher.lose(second, WorkerLostError("it died"))
    begin_anew(dispatcher, second)
    assert [job.number for job in actor_of(second).jobs.values()] == list(range(7, 21, 2))
    assert [job.number for job in actor_of(first).jobs.values()] == list(range(0, 21, 2))


def test_a_job_that_kills_its_workers_fails_and_no_other() -> None:
    dispatcher = dispatcher_of(1, lockstep=False, max_restarts=2)
    [keeper] = dispatcher.keepers
    [killer] = dispatcher.submit([Number(0, size=CAPACITY)])
    [other] = dispatcher.submit([Number(1)])
    for _ in range(3):
        assert not killer.done()
        assert dispatcher.lose(keeper, WorkerLostError("inference worker 0 died"))
        begin_anew(dispatcher, keeper)
    with pytest.raises(PoolError, match="gave up after losing 3 workers; the last: inference worker 0 died"):
        killer.result(0)
    work(dispatcher, keeper, 1)
    assert other.result(0) == 1


def test_a_place_in_which_no_worker_lives_ends_the_pool() -> None:
    dispatcher = dispatcher_of(2, lockstep=False, max_restarts=2)
    dead, alive = dispatcher.keepers
    assert dispatcher.lose(dead, WorkerLostError("died"))
    assert dispatcher.lose(dead, WorkerLostError("died"))
    futures = dispatcher.submit([Number(index) for index in range(10)])
    work(dispatcher, alive, 1)
    assert not dispatcher.lose(dead, WorkerLostError("inference worker 0 died while loading the model"))
    assert futures[0].result(0) == 0
    for future in futures[1:]:
        with pytest.raises(PoolError, match="gave up after losing 3 workers; the last: inference worker 0"):
            future.result(0)
    with pytest.raises(PoolError, match="while loading the model"):
        dispatcher.submit([Number(1)])


def test_what_is_closed_has_ended_every_job_also_for_those_who_wait_for_them() -> None:
    dispatcher = dispatcher_of(1, lockstep=False)
    futures = dispatcher.submit([Number(index) for index in range(30)])
    futures[7].cancel()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(collect, futures[:5])
        while not any(future._waiters for future in futures):  # pyright: ignore[reportAttributeAccessIssue]
            time.sleep(0.01)
        dispatcher.close()
        with pytest.raises(CancelledError):
            waiting.result(10)
    assert all(future.cancelled() for future in futures)
    assert not dispatcher.lose(dispatcher.keepers[0], WorkerLostError("killed"))
    with pytest.raises(PoolError, match="closed"):
        dispatcher.submit([Number(1)])


def test_jobs_that_cannot_be_pickled_fail_and_no_others() -> None:
    dispatcher = dispatcher_of(1, lockstep=False)
    [good] = dispatcher.submit([Number(1)])
    [bad] = dispatcher.submit([Number(2, size=-1)])
    with pytest.raises(TypeError, match="cannot pickle it"):
        bad.result(0)
    work(dispatcher, dispatcher.keepers[0], 2)
    assert good.result(0) == 1
