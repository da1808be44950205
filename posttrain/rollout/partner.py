"""The environment of an episode, which threads of their own open, ask and close."""

import contextlib
import threading
from collections.abc import Callable, Mapping

from posttrain.failures import WorldError
from posttrain.joints import Environment
from posttrain.types import EnvironmentReply, Message, Sample


class Partner:
    """An episode's environment, used by one thread at a time, and closed once whatever happens.

    Attributes:
        closed: Whether it has been closed.
    """

    def __init__(self, create: Callable[[], Environment]) -> None:
        self._create = create
        self._environment: Environment | None = None
        self.closed = False
        self._lock = threading.Lock()

    def start(self, sample: Sample) -> tuple[Message, ...]:
        """Open the environment; return the messages before the model's first turn.

        Raises:
            WorldError: If the world fails it.
        """
        with self._lock:
            if self.closed:  # by an episode that was cancelled before this began
                return ()
            self._environment = self._create()
            return self._environment.start(sample)

    def step(self, text: str) -> EnvironmentReply:
        """Let the environment answer a turn.

        Raises:
            WorldError: If the world fails it.
        """
        with self._lock:
            if self._environment is None or self.closed:
                return EnvironmentReply(None, (), done=True)
            return self._environment.step(text)

    def close(self) -> Mapping[str, float]:
        """Close the environment, if it was opened; return what it says of the episode's end.

        Raises:
            WorldError: If it cannot say.
        """
        with self._lock:
            opened, self.closed = self._environment, True
            self._environment = None
            return (opened.close() if opened is not None else None) or {}

    def give_up(self) -> None:
        """Close the environment of an episode that has failed; what it says of its end is of no use."""
        with contextlib.suppress(WorldError):
            self.close()
