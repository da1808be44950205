"""An engine in a thread of its own, which between two steps carries on the jobs that ask it.

The thread runs an event loop. A job is a coroutine in it, which awaits the turns that it asks for and hands
whatever takes time (tools, rendering, rewards) to other threads. So the engine waits for nothing but a few
appended lists, and commands such as loading weights run between two steps, with requests in flight.

In lockstep the engine makes its next step only when every sequence that has a slot has asked for its next
turn, and turns enter in the order of their slots. Then the batches of every step, and with them the last bits
of every sum, depend on jobs and seeds alone, and not on how long a tool took. Everything else is the same.
"""

import asyncio
import collections
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from posttrain.inference.engine import Completion, Engine, Request
from posttrain.inference.slots import SLOTS_PER_PLACE, Slot, Slots

R = TypeVar("R")
P = ParamSpec("P")


class ServingError(RuntimeError):
    """The engine's thread has ended."""


def aside(executor: Executor, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
    """Do something in another thread while the engine goes on; called within a job."""
    return asyncio.get_running_loop().run_in_executor(executor, lambda: work(*args, **kwargs))


@dataclass(eq=False)
class _Turn:
    """A request on its way."""

    slot: Slot
    request: Request
    answer: asyncio.Future[Completion]


class Serving:
    """An engine at work.

    Args:
        make_engine: Loads the engine; called in its thread, so that whatever it keeps for a thread stays with
            it.
        lockstep: Whether steps wait until every sequence has asked for its turn.
        after_step: Called in the engine's thread after every step, and once the thread has ended.

    Example:
        serving = Serving(load, lockstep=False)
        [future] = serving.begin([job(worker)])
        result = future.result()
        serving.close()
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        lockstep: bool,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread; return once the engine is loaded, or raise what loading it raised."""
        self.failure: BaseException | None = None
        self._lockstep = lockstep
        self._after_step = after_step
        self._asked: list[_Turn] = []
        self._in_flight: dict[str, _Turn] = {}
        self._commands: collections.deque[tuple[Callable[[Engine], Any], Future[Any]]] = collections.deque()
        self._jobs: dict[Future[Any], asyncio.Task[Any] | None] = {}
        self._lock = threading.Lock()
        self._ended = False
        loaded: Future[Engine] = Future()
        self._thread = threading.Thread(
            target=self._main, args=(make_engine, loaded), name="engine", daemon=True
        )
        self._thread.start()
        self.engine = loaded.result()

    @property
    def unfinished(self) -> int:
        """Number of sequences that are not over."""
        return self._slots.unfinished

    @property
    def wanting(self) -> int:
        """Number of sequences that want the engine now."""
        return self.unfinished - self._slots.outside

    @property
    def step_seconds(self) -> float:
        """How long the engine's present step has taken so far."""
        began = self.engine.step_began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def _must_wait(self) -> bool:
        """Whether a sequence has not asked for the turn with which the next step would have to begin."""
        return self._lockstep and self._slots.outside > 0

    def begin(self, jobs: Sequence[Coroutine[Any, Any, R]]) -> list[Future[R]]:
        """Begin jobs, in their order and with no step between; called in any thread.

        Returns:
            A future for each; cancelling it cancels the job.
        """
        futures: list[Future[R]] = [Future() for _ in jobs]
        with self._lock:
            if self._ended:
                for job in jobs:
                    job.close()
                raise self._ending()
            self._jobs |= dict.fromkeys(futures)
            self._loop.call_soon_threadsafe(self._start_jobs, jobs, futures)
        return futures

    def call(self, command: Callable[[Engine], R]) -> Future[R]:
        """Run a command in the engine's thread between two steps; called in any thread."""
        future: Future[R] = Future()
        with self._lock:
            if self._ended:
                raise self._ending()
            self._commands.append((command, future))
            self._loop.call_soon_threadsafe(self._slots.changed.set)
        return future

    def close(self) -> None:
        """Cancel every job and end the thread."""
        with self._lock:
            if not self._ended:
                self._loop.call_soon_threadsafe(self._driving.cancel)
        self._thread.join()

    def slot(self) -> Slot:
        """Take a place in the order of sequences; called within a job, before it waits for anything."""
        return self._slots.take()

    async def sample(self, slot: Slot, request: Request) -> Completion:
        """Have a turn of a sequence sampled; called within a job.

        Raises:
            Exception: If the engine refused the request.
        """
        turn = _Turn(slot, request, self._loop.create_future())
        self._asked.append(turn)
        self._slots.outside -= 1
        self._wake()
        try:
            return await turn.answer
        except asyncio.CancelledError:
            self._drop(turn)
            raise

    def _main(self, make_engine: Callable[[], Engine], loaded: Future[Engine]) -> None:
        """Load the engine, and run the event loop until it is closed or fails."""
        try:
            engine = make_engine()
        except BaseException as error:
            self._ended = True
            loaded.set_exception(error)
            return
        try:
            with asyncio.Runner() as runner:
                runner.run(self._drive(engine, loaded))
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.failure = error
        self._end()

    def _end(self) -> None:
        """Let nobody wait for what will not come."""
        with self._lock:
            self._ended = True
        for future in [*self._jobs, *(future for _, future in self._commands)]:
            if not future.done():
                future.set_exception(self._ending())
        self._after_step()

    def _ending(self) -> ServingError:
        """Make the error of whoever wants something of a thread that has ended."""
        reason = ServingError(f"the engine's thread has ended: {self.failure!r}")
        reason.__cause__ = self.failure
        return reason

    async def _drive(self, engine: Engine, loaded: Future[Engine]) -> None:
        """Be the loop's main task: announce the engine, and make its steps."""
        self._loop = asyncio.get_running_loop()
        driving = asyncio.current_task()
        assert driving is not None
        self._driving = driving
        self._capacity = engine.capacity
        self._slots = Slots(engine.capacity * (1 if self._lockstep else SLOTS_PER_PLACE))
        loaded.set_result(engine)
        try:
            await self._make_steps(engine)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                self.failure = error  # before any job is cancelled because of it
            raise

    async def _make_steps(self, engine: Engine) -> None:
        """Make steps as long as there is something to sample; between them jobs go on."""
        while True:
            await asyncio.sleep(0)  # jobs whose turns have come go on
            while self._commands:
                _run(*self._commands.popleft(), engine)
            if not self._must_wait:
                self._enter(engine)
            if self._in_flight and not self._must_wait:
                self._step(engine)
                self._after_step()
            else:
                self._slots.changed.clear()
                await self._slots.changed.wait()

    def _wake(self) -> None:
        """Look whether a step can be made."""
        if not self._must_wait:
            self._slots.changed.set()

    def _start_jobs(self, jobs: Sequence[Coroutine[Any, Any, R]], futures: Sequence[Future[R]]) -> None:
        """Make tasks of jobs."""
        for job, future in zip(jobs, futures, strict=True):
            task = self._loop.create_task(job)
            self._jobs[future] = task
            task.add_done_callback(lambda done, future=future: self._settle(done, future))
            future.add_done_callback(lambda _, task=task: self._cancel(task))

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a job whose future is cancelled; called in any thread."""
        with self._lock:
            if not self._ended and not task.done():
                self._loop.call_soon_threadsafe(task.cancel)

    def _settle(self, task: asyncio.Task[R], future: Future[R]) -> None:
        """Hand a job's end to its future."""
        self._jobs.pop(future, None)
        if task.cancelled() and self.failure is None:
            future.cancel()
        if not future.set_running_or_notify_cancel():
            return
        if task.cancelled():
            future.set_exception(self._ending())
            return
        error = task.exception()
        if error is None:
            future.set_result(task.result())
        else:
            future.set_exception(error)

    def _enter(self, engine: Engine) -> None:
        """Submit the turns that were asked for, those of older sequences first, as far as there is room."""
        if not self._asked:
            return
        self._asked.sort(key=lambda turn: turn.slot.number)
        room = max(0, self._capacity - len(self._in_flight))
        entering, self._asked = self._asked[:room], self._asked[room:]
        for turn in entering:
            try:
                engine.submit(turn.request)
            except Exception as error:
                self._answer(turn, error)
            else:
                self._in_flight[turn.request.id] = turn

    def _step(self, engine: Engine) -> None:
        """Make a step, and hand out the turns that are finished.

        An error ends the thread: nobody knows what state it left the engine in, or what the engine sampled.
        """
        for completion in engine.step():
            turn = self._in_flight.pop(completion.id, None)
            if turn is not None:
                self._answer(turn, completion)

    def _answer(self, turn: _Turn, found: Completion | Exception) -> None:
        """Let a turn's sequence go on."""
        self._slots.outside += 1
        if turn.answer.done():  # its job was cancelled
            return
        if isinstance(found, Exception):
            turn.answer.set_exception(found)
        else:
            turn.answer.set_result(found)

    def _drop(self, turn: _Turn) -> None:
        """Forget a turn that nobody waits for any more."""
        if turn in self._asked:
            self._asked.remove(turn)
        elif self._in_flight.pop(turn.request.id, None) is not None:
            self.engine.abort([turn.request.id])
        else:
            return  # it has been answered
        self._slots.outside += 1


def _run(command: Callable[[Engine], R], future: Future[R], engine: Engine) -> None:
    """Run a command, and hand its end to its future."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(command(engine))
    except Exception as error:
        future.set_exception(error)
