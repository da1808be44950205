"""What a pool gives its workers to do, and what they report."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol, TypeVar

W = TypeVar("W", contravariant=True)
R = TypeVar("R", covariant=True)


class Job(Protocol[W, R]):
    """Something to do in a worker's process; it is pickled, and may be repeated by another worker."""

    @property
    def size(self) -> int:
        """Number of sequences that it has sampled; 0 if it does not use the engine."""
        ...

    def __call__(self, worker: W, /) -> Awaitable[R]:
        """Do it, as a coroutine in the thread of the worker's engine.

        Before it waits for anything it takes a slot for each of its sequences, so that the order of jobs
        alone decides the order of sequences. What takes time goes to the worker's other threads.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """The end of a job.

    Attributes:
        ticket: The job's number in the pool.
        result: What it returned.
        error: What it raised; None if it returned.
    """

    ticket: int
    result: object = None
    error: Exception | None = None


@dataclass(frozen=True)
class Taken:
    """What a worker tells of weights that it has taken.

    Attributes:
        scores: The log-probs that it computes with them, of all tokens but the first of each sequence that it
            was given to prove them by; none if there were no sequences.
        seconds: How long that took.
        modules: Number of modules that an adapter changes.
    """

    scores: list[list[float]]
    seconds: float
    modules: int = 0


@dataclass(frozen=True)
class Report:
    """What a worker says of itself.

    Attributes:
        outcomes: The jobs that have ended since the last report.
        unfinished: Number of its sequences that are not over, those included that wait for a slot.
        wanting: How many of these want the engine now; the others wait for tools or are being rendered.
        step_seconds: How long the engine's present step has taken so far.
    """

    outcomes: list[Outcome]
    unfinished: int
    wanting: int
    step_seconds: float
