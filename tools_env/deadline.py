"""Waiting for a tool no longer than its deadline.

A thread cannot be killed. A tool that overruns is left behind in its thread: its result is thrown away,
but it goes on using memory and processor time until it returns by itself. That protects the other
episodes from a slow service or a lost connection. It does not protect them from code that never lets go
of the interpreter (a regular-expression bomb, a C loop): run such code in a process of its own.

What is asynchronous runs in one event loop, in a thread of its own, whichever episode it is of. So what
it has opened stays usable from call to call, and at its deadline it is cancelled. A coroutine that blocks
its loop is left behind with it; those that follow get another.
"""

import asyncio
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")

#: Threads left behind at a time; beyond it calls are refused until some of them return.
MAX_LEFT_BEHIND = 64
#: Seconds in which a cancelled coroutine must have ended.
CANCEL_S = 1.0

_left_behind: set[threading.Thread] = set()
_lock = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []  # the one in use, if there is one


class DeadlineError(Exception):
    """The function did not return in time, or was not started; the message says which."""


def call_with_deadline(
    function: Callable[[], Result | Awaitable[Result]],
    seconds: float,
    on_late: Callable[[Result], object] | None = None,
) -> Result:
    """Run a function in a thread and return what it returns; what can be awaited is awaited.

    Args:
        function: What to run.
        seconds: How long it may take.
        on_late: Told in its thread what the function returned after all; such as a session to be closed.

    Raises:
        DeadlineError: If it has not returned within `seconds`, or 64 others are still running over time.
        Exception: Whatever the function raised; `SystemExit` and its like come as `RuntimeError`.
    """
    with _lock:
        _left_behind.difference_update([thread for thread in _left_behind if not thread.is_alive()])
        if len(_left_behind) >= MAX_LEFT_BEHIND:
            raise DeadlineError(f"was not started, as {MAX_LEFT_BEHIND} earlier calls are still running")
    call = _Call(function, on_late)
    try:
        how = call.ended.get(timeout=seconds)
    except queue.Empty:
        call.leave_behind()
        raise DeadlineError(f"did not return within {seconds:g} s") from None
    if isinstance(how, tuple):
        return how[0]
    if isinstance(how, Exception):
        raise how
    raise RuntimeError(f"raised {type(how).__name__}") from how


class _Call:
    """A call in a thread of its own.

    Attributes:
        ended: Gets what it returned, in a tuple, or raised.
    """

    def __init__(self, function: Callable[[], Any], on_late: Callable[[Any], object] | None) -> None:
        self.ended: queue.SimpleQueue[tuple[Any] | BaseException] = queue.SimpleQueue()
        self._function, self._on_late = function, on_late
        self._late = False
        self._awaited: tuple[Future[Any], asyncio.AbstractEventLoop] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tool-call", daemon=True)
        self._thread.start()

    def leave_behind(self) -> None:
        """Give it up: cancel what is asynchronous, and note a thread that goes on."""
        with self._lock:
            self._late, awaited = True, self._awaited
        if awaited is not None:
            awaited[0].cancel()
            if not _responds(awaited[1]):
                _give_up(awaited[1])
        self._thread.join(0.01)
        with _lock:
            if self._thread.is_alive():
                _left_behind.add(self._thread)

    def _run(self) -> None:
        try:
            result = self._function()
            if inspect.isawaitable(result):
                result = self._wait(result)
            with self._lock:
                late = self._late
                if not late:
                    self.ended.put((result,))
            if late and self._on_late is not None:
                self._on_late(result)
        except BaseException as error:
            self.ended.put(error)

    def _wait(self, awaitable: Awaitable[Any]) -> Any:
        loop = tool_loop()
        with self._lock:
            future = asyncio.run_coroutine_threadsafe(_result_of(awaitable), loop)
            self._awaited = (future, loop)
            if self._late:
                future.cancel()
        return future.result()


def tool_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop in which whatever is asynchronous runs, of this process."""
    with _lock:
        if not _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="tool-loop", daemon=True).start()
            _loops.append(loop)
        return _loops[0]


async def _result_of(awaitable: Awaitable[Result]) -> Result:
    return await awaitable


def _responds(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether an event loop gets on."""
    seen = threading.Event()
    loop.call_soon_threadsafe(seen.set)
    return seen.wait(CANCEL_S)


def _give_up(loop: asyncio.AbstractEventLoop) -> None:
    """Have those that follow run in another loop; this one ends when it can."""
    with _lock:
        if loop in _loops:
            _loops.remove(loop)
    loop.call_soon_threadsafe(loop.stop)
