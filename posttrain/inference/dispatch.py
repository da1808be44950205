"""Which worker of a pool does what: jobs that wait, those that workers hold, and what becomes of them."""

import collections
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from posttrain.inference.jobs import Job, Outcome, Report
from posttrain.inference.keeper import Entry, Keeper, PoolError, Timeouts, WorkerLostError
from posttrain.inference.slots import SLOTS_PER_PLACE
from posttrain.inference.worker import EngineSetup, InferenceWorker
from posttrain.run.actors import Actor

logger = logging.getLogger(__name__)

R = TypeVar("R")


class Dispatcher:
    """Gives jobs to workers, and takes back those of workers that are lost.

    A job goes to the worker with the least to do, as soon as one has room; one that does not use the engine
    goes at once. In lockstep jobs are dealt out in
    turn, so that which engine does what depends on the jobs alone.

    Attributes:
        lock: Guards everything that is known of jobs and workers.
        keepers: The workers' places.

    Args:
        setup: What each worker is made from.
        make_actors: Start each worker's actor.
        serve: Lets a worker serve that has loaded its model; it calls `let_serve`.
        timeouts: Limits of every wait.
        max_restarts: See `InferencePool`.
    """

    def __init__(
        self,
        setup: EngineSetup,
        make_actors: Sequence[Callable[[], Actor[InferenceWorker]]],
        serve: Callable[[Keeper], None],
        *,
        timeouts: Timeouts,
        max_restarts: int,
    ) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._lockstep, self._capacity = setup.lockstep, setup.engine_config.max_num_seqs
        self._max_restarts = max_restarts
        self._failure: Exception | None = None
        self._closed = False
        self._tickets = itertools.count()
        self._queue: collections.deque[Entry] = collections.deque()
        self.keepers = [
            Keeper(index, make_actor, setup, timeouts, self, serve)
            for index, make_actor in enumerate(make_actors)
        ]

    def begin(self) -> None:
        """Start the workers."""
        for keeper in self.keepers:
            keeper.begin()

    def submit(self, jobs: Sequence[Job[Any, R]]) -> list[Future[R]]:
        """Have jobs done, those given first before others; see `InferencePool.submit`."""
        futures: list[Future[R]] = [Future() for _ in jobs]
        with self.lock:
            self.check()
            for index, (job, future) in enumerate(zip(jobs, futures, strict=True)):
                entry = Entry(next(self._tickets), job, future)
                if self._lockstep:
                    entry.place = index % len(self.keepers)
                    self.keepers[entry.place].expect(entry)
                elif job.size:
                    self._queue.append(entry)
                else:
                    self._queue.appendleft(entry)  # it need not wait until an engine has room
                # Not the entry, which has the future: results would stay until garbage is collected.
                future.add_done_callback(partial(self._forget, entry.ticket))
            self._dispatch()
        return futures

    def ready(self) -> None:
        """Wait until every worker serves, or waits for the weights that are published next.

        Raises:
            Exception: What kept a worker from starting.
        """
        with self._changed:
            # Each start has its own limits, and so few are made one after another.
            self._changed.wait_for(
                lambda: self._failure or all(keeper.serving or keeper.waiting for keeper in self.keepers)
            )
            self.check()

    def let_serve(self, keeper: Keeper) -> None:
        """Give jobs to a worker, which has the newest weights."""
        with self._changed:
            keeper.serving = keeper.served_once = True
            keeper.waiting = False
            self._dispatch()
            self._changed.notify_all()

    def let_wait(self, keeper: Keeper) -> None:
        """Keep a worker until the weights that are published next, since nobody has the present ones."""
        with self._changed:
            keeper.waiting = True
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel every job, and have no worker replaced."""
        with self.lock:
            self._closed = True
            entries = self._entries()
            for keeper in self.keepers:
                keeper.closed = True
        for entry in entries:
            entry.future.cancel()
            entry.future.set_running_or_notify_cancel()  # else `as_completed` waits for it without end

    def check(self) -> None:
        """Raise what keeps workers from working."""
        if self._closed:
            raise PoolError("the pool is closed")
        if self._failure is not None:
            raise self._failure

    def receive(self, keeper: Keeper, report: Report) -> None:
        """Take a worker's report, and give it more to do; called by its keeper."""
        ended: list[tuple[Entry, Outcome]] = []
        with self.lock:
            for outcome in report.outcomes:
                entry = keeper.held.pop(outcome.ticket, None)
                if entry is not None:
                    ended.append((entry, outcome))
                    keeper.losses = 0
            keeper.unfinished, keeper.wanting = report.unfinished, report.wanting
            self._dispatch()
        for entry, outcome in ended:
            _settle(entry.future, outcome.result, outcome.error)

    def fail_jobs(self, keeper: Keeper, tickets: Iterable[int], error: Exception) -> None:
        """End jobs that a worker could not take; called by its keeper."""
        with self.lock:
            entries = [keeper.held.pop(ticket) for ticket in tickets if ticket in keeper.held]
        for entry in entries:
            _settle(entry.future, None, error)

    def lose(self, keeper: Keeper, loss: WorkerLostError) -> bool:
        """Take back a lost worker's jobs, and say whether it is replaced; called by its keeper."""
        with self.lock:
            if keeper.closed or self._failure is not None:
                return False
            entries = [*keeper.held.values(), *keeper.inbox]
            for entry in keeper.held.values():
                entry.losses += 1
            keeper.serving = keeper.waiting = False
            keeper.held.clear()
            keeper.inbox.clear()
            keeper.unfinished = keeper.wanting = 0
            keeper.losses += 1
            failed = [entry for entry in entries if entry.losses > self._max_restarts]
            again = sorted(
                (entry for entry in entries if entry.losses <= self._max_restarts),
                key=lambda entry: entry.ticket,
            )
            for entry in again:
                if entry.place is not None:
                    keeper.expect(entry)
            self._queue.extendleft(entry for entry in reversed(again) if entry.place is None)
            if failed:
                keeper.losses = 0  # it is they that are held to account
            self._dispatch()
        logger.warning("%s; it is replaced and its %d jobs are repeated", loss, len(again))
        given_up = PoolError(f"gave up after losing {self._max_restarts + 1} workers; the last: {loss}")
        given_up.__cause__ = loss
        for entry in failed:
            _settle(entry.future, None, given_up)
        if keeper.losses > self._max_restarts:
            self.give_up(given_up)
            return False
        return True

    def give_up(self, error: Exception) -> None:
        """Fail every job: a worker cannot be started; called by its keeper."""
        with self._changed:
            if self._closed:
                return
            self._failure = error
            entries = self._entries()
            self._changed.notify_all()
        for entry in entries:
            _settle(entry.future, None, error)

    def _entries(self) -> list[Entry]:
        """Take every job that has not ended; the lock is held."""
        places = [entry for keeper in self.keepers for entry in (*keeper.held.values(), *keeper.inbox)]
        entries = [*self._queue, *places]
        self._queue.clear()
        for keeper in self.keepers:
            keeper.held.clear()
            keeper.inbox.clear()
        return entries

    def _dispatch(self) -> None:
        """Give waiting jobs to the workers with the least to do that have room; the lock is held."""
        open_keepers = [keeper for keeper in self.keepers if keeper.serving or not keeper.served_once]
        while self._queue:
            with_room = [
                keeper
                for keeper in open_keepers
                if not self._queue[0].job.size
                or (keeper.wanting < self._capacity and keeper.unfinished < SLOTS_PER_PLACE * self._capacity)
            ]
            if not with_room:
                break
            entry = self._queue.popleft()
            if not entry.future.cancelled():
                min(with_room, key=lambda keeper: (keeper.wanting, keeper.unfinished)).expect(entry)
        for keeper in self.keepers:
            if keeper.serving and keeper.inbox:
                keeper.send()

    def _forget(self, ticket: int, future: Future[Any]) -> None:
        """Cancel a job in its worker whose future was cancelled."""
        if not future.cancelled():
            return
        with self.lock:
            for keeper in self.keepers:
                if keeper.held.pop(ticket, None) and keeper.actor is not None and not self._closed:
                    keeper.actor.call(InferenceWorker.cancel, ticket)


def _settle(future: Future[Any], result: object, error: Exception | None) -> None:
    """End a future, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
