"""Several rewards for one episode: run each, keep every part, add up what counts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.types import RewardInput, RewardResult, Score
from rewards.sdk import Reward, RewardError, load_reward

#: Errors and notes are for people; a scorer's megabyte of text is cut.
MAX_TEXT = 500


@dataclass(frozen=True)
class RewardSpec:
    """One line of a configuration's `rewards:` list.

    Attributes:
        name: Reference of the reward.
        weight: Its factor in the sum.
        params: Keyword arguments of the reward.

    Example:
        RewardSpec("tool_calls", weight=0.3, params={"target": 2})
    """

    name: str
    weight: float = 1.0
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What one reward said of one episode: a score, None (does not apply) or an error's reason."""

    score: Score | None = None
    error: str = ""


class RewardManager:
    """Scores episodes in this process.

    There is no deadline here: a reward that hangs, hangs its caller. `rewards.pool.WorkerPool` and the
    server run the same rewards in processes that can be killed.

    Args:
        specs: The rewards, each at most once.
        base_dir: Folder against which file references are resolved; the working directory if None.

    Raises:
        PluginError: If a reference does not lead to a reward.
        RewardError: If a reward stands twice in the list, or does not take its parameters.

    Example:
        RewardManager([RewardSpec("math"), RewardSpec("my_rewards.py:neatness", 0.2)]).score(episodes)
    """

    def __init__(self, specs: Sequence[RewardSpec], base_dir: Path | None = None):
        check_specs(specs)
        self.specs = list(specs)
        self.rewards = [load_reward(spec.name, base_dir) for spec in specs]
        for spec, loaded in zip(self.specs, self.rewards, strict=True):
            loaded.check(spec.params)

    def score(self, inputs: Sequence[RewardInput]) -> list[RewardResult]:
        """One verdict for each episode, in order."""
        return [combine(self.specs, self._outcomes(x)) for x in inputs]

    def _outcomes(self, x: RewardInput) -> list[Outcome]:
        pairs = zip(self.specs, self.rewards, strict=True)
        return [evaluate(loaded, x, spec.params) for spec, loaded in pairs]


def check_specs(specs: Sequence[RewardSpec]) -> None:
    """Refuse a list that is empty, names a reward twice or has a weight that is not finite.

    Raises:
        RewardError: Naming the reward.
    """
    if not specs:
        raise RewardError("rewards: the list is empty; name at least one reward")
    names = [spec.name for spec in specs]
    for spec in specs:
        if names.count(spec.name) > 1:
            raise RewardError(f"rewards: {spec.name!r} stands in the list twice; results are kept by name")
        if not math.isfinite(spec.weight):
            raise RewardError(f"rewards: the weight of {spec.name!r} is {spec.weight}, not a finite number")


def evaluate(loaded: Reward, x: RewardInput, params: dict[str, Any]) -> Outcome:
    """Run one reward on one episode; whatever it raises becomes an error, never a score."""
    try:
        return Outcome(loaded(x, **params))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # plugins and their libraries also raise SystemExit and worse
        return Outcome(error=f"{type(error).__name__}: {error}"[:MAX_TEXT])


def combine(specs: Sequence[RewardSpec], outcomes: Sequence[Outcome]) -> RewardResult:
    """The weighted sum Σ wᵢ·vᵢ over the rewards that apply.

    A reward that does not apply is left out with its weight. One error, or no reward that applies,
    makes the total None: the episode is masked, because any number would be invented.
    """
    result = RewardResult(total=None)
    total = 0.0
    for spec, outcome in zip(specs, outcomes, strict=True):
        if outcome.error:
            result.errors[spec.name] = outcome.error
            continue
        result.values[spec.name] = outcome.score.value if outcome.score else None
        if outcome.score is None:
            continue
        total += spec.weight * outcome.score.value
        if outcome.score.parts:
            result.parts[spec.name] = dict(outcome.score.parts)
        if outcome.score.note:
            result.notes[spec.name] = outcome.score.note[:MAX_TEXT]
    if not result.errors and all(value is None for value in result.values.values()):
        result.errors["total"] = "none of the rewards applies to this sample"
    if not math.isfinite(total):
        result.errors["total"] = "the weighted sum is too large for a number"
    if not result.errors:
        result.total = total
    return result
