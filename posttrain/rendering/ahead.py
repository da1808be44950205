"""Make values in threads before they are asked for, in a given order and within a bound of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Ahead(Generic[K, V]):
    """Values that are made before they are asked for.

    Threads begin as many values as there are threads, and no more than `max_bytes` of values that nobody has
    taken (one, where a single one is larger), so that a process that ends waits for those alone. A value that
    has not been begun when it is asked for is left to the asker, who would otherwise wait for others' values.

    Args:
        max_bytes: Most bytes of values that are made or being made, and not taken.
        threads: Number of threads; with 0 nothing is made ahead.

    Example:
        ahead = Ahead(max_bytes=2**30, threads=4)
        ahead.plan([("a.png", 10_000, lambda: decode("a.png"))])
        image = ahead.take("a.png") or decode("a.png")
    """

    def __init__(self, max_bytes: int, threads: int) -> None:
        self._max_bytes = max_bytes
        self._threads = threads
        # Started by the first value, so that a process without any has no threads.
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._planned: OrderedDict[K, tuple[int, Callable[[], V]]] = OrderedDict()
        self._begun: dict[K, tuple[int, Future[V]]] = {}
        self._bytes = 0
        self._running = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the values that are made or being made, and not taken."""
        return self._bytes

    def plan(self, wanted: Iterable[tuple[K, int, Callable[[], V]]]) -> None:
        """Have values made, after those that were planned before.

        Args:
            wanted: For each value its key, its bytes and what makes it; one that is planned already is made
                once.
        """
        if not self._threads:
            return
        with self._lock:
            for key, nbytes, make in wanted:
                if key not in self._planned and key not in self._begun:
                    self._planned[key] = (nbytes, make)
            self._begin()

    def take(self, key: K) -> V | None:
        """Take a value, and wait for it if it is being made; None if it was not planned or not begun.

        Raises:
            Exception: What making it raised.
        """
        with self._lock:
            if self._planned.pop(key, None) is not None:
                self._drop_one()
            nbytes, future = self._begun.pop(key, (0, None))
        try:
            return None if future is None else future.result()
        finally:
            with self._lock:
                self._bytes -= nbytes
                self._begin()

    def _drop_one(self) -> None:
        """Drop the oldest value that is finished; the lock is held.

        A later one than it has been asked for: perhaps nobody wants it, and it would hold its place for ever.
        """
        for key, (nbytes, future) in self._begun.items():
            if future.done():
                del self._begun[key]
                self._bytes -= nbytes
                return

    def _begin(self) -> None:
        """Begin what is next, as far as threads and bytes allow; the lock is held."""
        while self._planned and self._running < self._threads:
            key, (nbytes, make) = next(iter(self._planned.items()))
            if self._begun and self._bytes + nbytes > self._max_bytes:
                return
            del self._planned[key]
            self._pool = self._pool or ThreadPoolExecutor(self._threads, thread_name_prefix="pixels")
            self._bytes += nbytes
            self._running += 1
            self._begun[key] = (nbytes, self._pool.submit(self._make, make))

    def _make(self, make: Callable[[], V]) -> V:
        """Make a value in a thread, and begin the next."""
        try:
            return make()
        finally:
            with self._lock:
                self._running -= 1
                self._begin()
