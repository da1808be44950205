"""Waiting for a tool no longer than its deadline.

A thread cannot be killed. A tool that overruns is left behind in its thread: its result is thrown away,
but it goes on using memory and processor time until it returns by itself. That protects the other
episodes from a slow service or a lost connection. It does not protect them from code that never lets go
of the interpreter (a regular-expression bomb, a C loop): run such code in a process of its own.
"""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

#: Threads left behind at a time; beyond it calls are refused until some of them return.
MAX_LEFT_BEHIND = 64

_left_behind: set[threading.Thread] = set()
_lock = threading.Lock()


class DeadlineError(Exception):
    """The function did not return in time, or was not started; the message says which."""


def call_with_deadline(function: Callable[[], Result], seconds: float) -> Result:
    """Run a function in a thread and return what it returns.

    Raises:
        DeadlineError: If it has not returned within `seconds`, or 64 others are still running over time.
        Exception: Whatever the function raised; `SystemExit` and its like come as `RuntimeError`.
    """
    with _lock:
        _left_behind.difference_update([thread for thread in _left_behind if not thread.is_alive()])
        if len(_left_behind) >= MAX_LEFT_BEHIND:
            raise DeadlineError(f"was not started, as {MAX_LEFT_BEHIND} earlier calls are still running")
    ended: queue.SimpleQueue[tuple[Result] | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((function(),))
        except BaseException as error:
            ended.put(error)

    thread = threading.Thread(target=run, name="tool-call", daemon=True)
    thread.start()
    try:
        how = ended.get(timeout=seconds)
    except queue.Empty:
        with _lock:
            _left_behind.add(thread)
        raise DeadlineError(f"did not return within {seconds:g} s") from None
    if isinstance(how, tuple):
        return how[0]
    if isinstance(how, Exception):
        raise how
    raise RuntimeError(f"raised {type(how).__name__}") from how
