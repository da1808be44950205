"""What a reward is: a function of one finished episode, with a declared range that is enforced."""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from posttrain.plugins import PluginError, resolve
from posttrain.types import RewardInput, Score

Verdict = float | Score | None
RewardFunction = Callable[..., Verdict | Awaitable[Verdict]]


class RewardError(ValueError):
    """A reward broke its contract, or was given parameters that it does not take."""


@dataclass(frozen=True)
class Reward:
    """A reward function with its name and range; call it to score one episode.

    Attributes:
        name: What people call it; configurations use the reference instead.
        function: `fn(x, **params)`, sync or async.
        low, high: The range that its values must lie in.
    """

    name: str
    function: RewardFunction
    low: float = 0.0
    high: float = 1.0

    def __call__(self, x: RewardInput, **params: Any) -> Score | None:
        """Score one episode; an async function is run to its end.

        Returns:
            The score, or None where the reward does not apply.

        Raises:
            RewardError: If the value is not a finite number in the declared range.
            Exception: Whatever the function raises.
        """
        verdict = self.function(x, **params)
        if inspect.isawaitable(verdict):
            verdict = asyncio.run(cast(Coroutine[Any, Any, Verdict], verdict))
        if verdict is None:
            return None
        score = verdict if isinstance(verdict, Score) else Score(verdict)
        self._check_value(score.value)
        for part, value in score.parts.items():
            if not _is_finite_number(value):
                raise RewardError(f"reward {self.name!r}: part {part!r} is {value!r}, not a finite number")
        return score

    def check(self, params: dict[str, Any]) -> None:
        """Refuse parameters that the function does not take, before anything is scored.

        Raises:
            RewardError: Naming the parameters that it takes.
        """
        signature = inspect.signature(self.function)
        try:
            signature.bind(None, **params)
        except TypeError as error:
            takes = ", ".join(list(signature.parameters)[1:]) or "none"
            raise RewardError(f"reward {self.name!r}: params: {error} (it takes: {takes})") from None

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def _check_value(self, value: Any) -> None:
        if not _is_finite_number(value):
            raise RewardError(f"reward {self.name!r} returned {value!r}, not a finite number")
        if not self.low <= value <= self.high:
            raise RewardError(
                f"reward {self.name!r} returned {value!r}, outside its range [{self.low:g}, {self.high:g}];"
                " declare another range with @reward(name, low=…, high=…)"
            )


def reward(name: str, low: float = 0.0, high: float = 1.0) -> Callable[[RewardFunction], Reward]:
    """Make a reward of a function `fn(x: RewardInput, **params) -> float | Score | None`.

    Return None where the reward does not apply to a sample, and raise where it cannot tell: an error
    leaves the sample out of training, it never counts as 0.

    Args:
        name: A short name.
        low: Its least value.
        high: Its greatest value, which a perfect answer gets.

    Example:
        @reward("brevity")
        def brevity(x, limit=200):
            return 1.0 if len(x.answer) <= limit else 0.0
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RewardError(f"reward {name!r}: the range [{low}, {high}] must be finite and not empty")
    return lambda function: Reward(name, function, low, high)


def load_reward(reference: str, base_dir: Path | None = None) -> Reward:
    """The reward behind a name, `file.py:attribute` or `package.module:attribute`.

    Raises:
        PluginError: If the reference leads nowhere, or to something that is not a reward.
    """
    found = resolve(reference, "posttrain.rewards", base_dir)
    if not isinstance(found, Reward):
        raise PluginError(
            f"{reference!r} is {type(found).__name__}, not a reward: put `@reward('name')` above the function"
            " (from rewards import reward)"
        )
    return found


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
