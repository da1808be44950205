"""What a reward is: a function of one finished episode, with a declared range that is enforced."""

import asyncio
import inspect
import itertools
import math
import numbers
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from posttrain.plugins import PluginError, resolve
from posttrain.reward_spec import OUTCOME
from posttrain.types import RewardInput, Score
from rewards.parameters import parameter_fault, parameters_of, takes_budget

#: Largest size of what an environment may say of its state.
OUTCOME_LIMIT = 1e9

Verdict = float | Score | None
RewardFunction = Callable[..., Verdict | Awaitable[Verdict]]
GroupRewardFunction = Callable[..., Sequence[Verdict] | Awaitable[Sequence[Verdict]]]


class RewardError(ValueError):
    """A reward broke its contract, or was given parameters that it does not take."""


class StopScoring(RuntimeError):
    """No more scores can be had, as where a budget is spent: the run is to stop with this message.

    A reward raises it; every other error is of one sample, and the run goes on without that.
    """


class LeftOut(RuntimeError):
    """The reward is to be left out of this episode and of all others of its prompt, so that they compare.

    A reward raises it where it cannot be had any more and the others of the task are to count alone.
    """


class ParameterError(RewardError):
    """A reward was given a parameter that it does not take, or lacks one that it needs."""


@dataclass(frozen=True)
class Reward:
    """A reward function with its name and range; call it to score one episode.

    Attributes:
        name: What people call it; configurations use the reference instead.
        function: `fn(x, **params)`, or `fn(xs, **params)` of a whole group; sync or async.
        low, high: The range that its values must lie in.
        deadline_s: Seconds that one call may take; None for the pool's own limit.
        group: Whether it judges all the episodes of a prompt at once.
        guarded: Parameters that name files or addresses; a server takes them only from those it trusts.
        written: Writes right answers to a ground truth as models would; None where nobody has said how.
    """

    name: str
    function: RewardFunction | GroupRewardFunction
    low: float = 0.0
    high: float = 1.0
    deadline_s: float | None = None
    group: bool = False
    guarded: frozenset[str] = frozenset()
    written: Callable[[object], Sequence[str] | None] | None = None

    def __call__(self, x: RewardInput, **params: object) -> Score | None:
        """Score one episode, which for a group reward is a group of one.

        Returns:
            The score, or None where the reward does not apply.

        Raises:
            RewardError: If the value is not a finite number in the declared range.
            Exception: Whatever the function raises.
        """
        return self.judge([x], params)[0]

    def judge(self, xs: Sequence[RewardInput], params: Mapping[str, object]) -> list[Score | None]:
        """Call the function once, on one episode or on the whole of a group; async ones are run to their end.

        Raises:
            RewardError: If a value is not a finite number in the declared range.
            Exception: Whatever the function raises.
        """
        verdict = self._call(xs, params)
        if inspect.isawaitable(verdict):
            verdict = asyncio.run(_result_of(verdict))
        return self._scores(verdict, len(xs))

    async def judge_async(
        self, xs: Sequence[RewardInput], params: Mapping[str, object]
    ) -> list[Score | None]:
        """Do what `judge` does within a running event loop."""
        verdict = self._call(xs, params)
        if inspect.isawaitable(verdict):
            verdict = await verdict
        return self._scores(verdict, len(xs))

    def check(self, params: Mapping[str, object]) -> None:
        """Refuse parameters that the function does not take, before anything is scored.

        Raises:
            ParameterError: Naming the parameters that it takes, or the choices of a wrong value.
        """
        if reason := parameter_fault(parameters_of(self.function), params):
            raise ParameterError(f"reward {self.name!r}: {reason}")

    @property
    def is_async(self) -> bool:
        """Whether it waits for others rather than computes, so that many calls may run at once."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def budgeted(self) -> bool:
        """Whether what it asks for is counted against a run's budget of judges."""
        return takes_budget(parameters_of(self.function))

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def _call(self, xs: Sequence[RewardInput], params: Mapping[str, object]) -> object:
        if not self.group and len(xs) != 1:
            raise RewardError(f"reward {self.name!r} judges one episode at a time, not {len(xs)}")
        return self.function(list(xs) if self.group else xs[0], **params)

    def _scores(self, verdict: object, count: int) -> list[Score | None]:
        """Return the function's verdict as one score an episode, each of them checked."""
        if not self.group:
            return [self._score(verdict)]
        verdicts = list[object]()
        if isinstance(verdict, Iterable) and not isinstance(verdict, str | bytes | Mapping | Set):
            verdicts += itertools.islice(verdict, count + 1)
        if len(verdicts) != count:
            raise RewardError(
                f"group reward {self.name!r} was given {count} episodes and must return a list of as many"
            )
        return [self._score(one) for one in verdicts]

    def _score(self, verdict: object) -> Score | None:
        if verdict is None:
            return None
        given = verdict if isinstance(verdict, Score) else None
        value = self._number(given.value if given else verdict, "returned ")
        if not self.low <= value <= self.high:
            raise RewardError(
                f"reward {self.name!r} returned {value!r}, outside its range"
                f" [{self.low:g}, {self.high:g}]; declare another range with @reward(name, low=…, high=…)"
            )
        if given is None:
            return Score(value)
        parts = {
            part: self._number(held, f"has a part {part!r} that is ") for part, held in given.parts.items()
        }
        return Score(value, parts, given.note)

    def _number(self, value: object, what: str) -> float:
        number = number_of(value)
        if number is None or not math.isfinite(number):
            raise RewardError(f"reward {self.name!r} {what}{value!r}, not a finite number")
        return number


def reward(
    name: str,
    low: float = 0.0,
    high: float = 1.0,
    deadline_s: float | None = None,
    guarded: Collection[str] = (),
    written: Callable[[object], Sequence[str] | None] | None = None,
) -> Callable[[RewardFunction], Reward]:
    """Make a reward of a function `fn(x: RewardInput, **params) -> float | Score | None`.

    Return None where the reward does not apply to a sample, and raise where it cannot tell: an error
    leaves the sample out of training, it never counts as 0. An `async` function may wait for a service; many
    of its calls run at once.

    Args:
        name: A short name.
        low: Its least value.
        high: Its greatest value, which a perfect answer gets.
        deadline_s: Seconds that one call may take; None for the limit of the server (10 s).
        guarded: Parameters that name files or addresses; a server without a token refuses them from clients.
        written: `fn(ground_truth) -> list of texts`, right answers as models write them; `posttrain validate`
            then says which rows of a dataset no such answer gets full marks for.

    Example:
        @reward("brevity")
        def brevity(x, limit=200):
            return 1.0 if len(x.answer) <= limit else 0.0
    """
    _check_declaration(name, low, high, deadline_s)
    return lambda function: Reward(
        name, function, low, high, deadline_s, guarded=frozenset(guarded), written=written
    )


def group_reward(
    name: str,
    low: float = 0.0,
    high: float = 1.0,
    deadline_s: float | None = None,
    guarded: Collection[str] = (),
) -> Callable[[GroupRewardFunction], Reward]:
    """Make a reward that judges all the episodes of a prompt at once.

    The function `fn(xs: list[RewardInput], **params)` returns one float, Score or None for each, in order.

    Args:
        name: A short name.
        low: Its least value.
        high: Its greatest value.
        deadline_s: Seconds that one call may take; None for the limit of the server (10 s).
        guarded: Parameters that name files or addresses; a server without a token refuses them from clients.

    Example:
        @group_reward("shortest")
        def shortest(xs):
            least = min(len(x.answer) for x in xs)
            return [float(len(x.answer) == least) for x in xs]
    """
    _check_declaration(name, low, high, deadline_s)
    return lambda function: Reward(name, function, low, high, deadline_s, True, frozenset(guarded))


def load_reward(reference: str, base_dir: Path | None = None) -> Reward:
    """Load the reward behind a name, `file.py:attribute` or `package.module:attribute`.

    `environment.NAME` is the reward of that name that the episode's environment gives.

    Raises:
        PluginError: If the reference leads nowhere, or to something that is not a reward.
    """
    if reference.startswith(OUTCOME):
        return _of_environment(reference)
    found = resolve(reference, "posttrain.rewards", object, base_dir)
    if not isinstance(found, Reward):
        raise PluginError(
            f"{reference!r} is {type(found).__name__}, not a reward: put `@reward('name')` above the function"
            " (from rewards import reward)"
        )
    return found


def _of_environment(reference: str) -> Reward:
    """Make the reward that hands on what an environment says of its state; it is of any finite size."""
    name = reference.removeprefix(OUTCOME)

    def outcome(x: RewardInput) -> float | None:
        """Hand on what the environment says of the episode's end."""
        if not x.outcome:
            return None
        if name not in x.outcome:
            raise RewardError(f"the environment gives no {name!r}, but {', '.join(x.outcome)}")
        return x.outcome[name]

    # What a right answer looks like, the environment alone knows.
    return Reward(reference, outcome, -OUTCOME_LIMIT, OUTCOME_LIMIT, written=lambda _: None)


def number_of(value: object) -> float | None:
    """Return a number of any kind as a float: Python's own, numpy's, a tensor of one; None for anything else.

    A number stands alone: arrays and tensors count where they have no dimension. NaN and infinity are
    numbers here, and so is what exceeds every float, as NaN; whoever takes none refuses them.
    """
    if getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M"):
        return None  # a duration or a moment, whose bare number depends on its unit
    if not isinstance(value, numbers.Real | Decimal):
        item, shape = getattr(value, "item", None), getattr(value, "shape", None)
        if isinstance(value, str | bytes) or not callable(item) or shape is None or tuple(shape) != ():
            return None
        if not isinstance(item(), numbers.Real):
            return None
    try:
        return float(value)  # type: ignore[arg-type]  # an array says only when it runs that it is a number
    except (OverflowError, ValueError):  # an integer beyond every float; Decimal("sNaN")
        return math.nan


def _check_declaration(name: str, low: float, high: float, deadline_s: float | None) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RewardError(f"reward {name!r}: the range [{low}, {high}] must be finite and not empty")
    if deadline_s is not None and not 0 < deadline_s < math.inf:
        raise RewardError(f"reward {name!r}: deadline_s={deadline_s} must be a positive number of seconds")


async def _result_of(awaitable: Awaitable[object]) -> object:
    return await awaitable
