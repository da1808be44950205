"""Environments by users: a partner in the dialogue that has a state, and rewards from it."""

import inspect
import math
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeAlias

from PIL import Image

from posttrain.types import Sample
from tools_env.sessions import Session, SessionClass

#: What an environment says: a text, an image, or several of them in their order.
Shown: TypeAlias = str | Image.Image | Sequence[str | Image.Image]


class Environment(Session):
    """A partner of the model, such as a game; subclass it and name it in a task as `environment`.

    Each episode has an object of its own, made with the task's params. Methods with `@tool` are actions that
    the model may call; one that returns None ends the episode. All methods may be `async`.

    Attributes:
        turns_left: How many turns the model still has; 0 while its last one is answered.

    Example:
        class Guess(Environment):
            def start(self, sample):
                self.number, self.solved = sample.columns["number"], False

            def step(self, said):
                self.solved = said == str(self.number)
                return None if self.solved else "No. Guess again."

            def rewards(self):
                return {"solved": float(self.solved)}
    """

    turns_left: int = 0

    def start(self, sample: Sample) -> Shown | Awaitable[Shown | None] | None:
        """Begin; what is returned is shown at the end of the row's messages."""

    def step(self, said: str) -> Shown | Awaitable[Shown | None] | None:
        """Answer a turn of the model without tool calls; None ends the episode.

        Args:
            said: The turn without its thinking.
        """

    def rewards(self) -> Mapping[str, float]:
        """Return what the state is worth at the end of the episode, however it ended, by name.

        A task weighs them as `environment.NAME`.
        """
        return {}


class LoadedGame(SessionClass):
    """What a task's `environment` stands for."""

    @property
    def summary(self) -> str:
        """Its docstring."""
        return inspect.getdoc(self._made_of) or ""

    def session(self) -> Environment:
        """Make the environment of one episode."""
        made = super().session()
        assert isinstance(made, Environment)
        return made


def checked_rewards(found: Any) -> dict[str, float]:
    """Return the rewards of a state as plain numbers.

    Raises:
        TypeError, ValueError: If they are not finite numbers by name.
    """
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise TypeError(f"rewards() must return numbers by name, got {found!r:.200}")
    numbers = {name: float(value) for name, value in found.items()}
    if wrong := [name for name, number in numbers.items() if not math.isfinite(number)]:
        raise ValueError(f"rewards() returned {numbers[wrong[0]]} for {wrong[0]!r}, not a finite number")
    return numbers
