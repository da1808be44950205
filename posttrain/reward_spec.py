"""The rewards of a task as data, and what makes a list of them wrong.

Configurations, the reward server and its clients share both. Only the standard library is imported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

#: Beginning of the references to rewards that a task's environment gives: this, and the name.
OUTCOME = "environment."


class WeightedReward(Protocol):
    """What the rules of a list look at; a configuration's section and `RewardSpec` both have it."""

    @property
    def name(self) -> str:
        """Reference of the reward."""
        ...

    @property
    def weight(self) -> float:
        """Its factor in the sum."""
        ...

    @property
    def only_if(self) -> dict[str, float]:
        """Other rewards of the list, and the least value that each must have for this one to count."""
        ...

    @property
    def unless(self) -> dict[str, float]:
        """Other rewards of the list, and the value from which on each of them decides without this one."""
        ...


@dataclass(frozen=True)
class RewardSpec:
    """One line of a configuration's `rewards:` list.

    Attributes:
        name: Reference of the reward.
        weight: Its factor in the sum.
        params: Keyword arguments of the reward.
        only_if: Other rewards of the list and the least value that each must have for this one to count.
        unless: Other rewards of the list and the value from which on each of them decides without this one.
        audit_share: Share of the episodes on which a reward that waits for a service is asked although its
            conditions fail. It does not count there, but tells how far it agrees with the others.

    Example:
        RewardSpec("tool_calls", weight=0.3, params={"target": 2}, only_if={"answer_accuracy": 1.0})
    """

    name: str
    weight: float = 1.0
    params: Mapping[str, object] = field(default_factory=dict)
    only_if: dict[str, float] = field(default_factory=dict)
    unless: dict[str, float] = field(default_factory=dict)
    audit_share: float = 0.0


def reward_list_fault(rewards: Sequence[WeightedReward]) -> tuple[str, str] | None:
    """Find what is wrong with a list of rewards.

    Results are kept by name, so each reward stands in it once; conditions name other rewards of the list;
    weights and conditions are finite numbers.

    Returns:
        The first fault and its remedy, or None where the list is right.
    """
    if not rewards:
        return "the list is empty", "name at least one reward"
    names = [reward.name for reward in rewards]
    for reward in rewards:
        name = reward.name
        if names.count(name) > 1:
            return f"{name!r} is listed more than once", "list it once"
        if not math.isfinite(reward.weight):
            return f"the weight of {name!r} is {reward.weight}", "give it a finite number"
        for key in ("only_if", "unless"):
            conditions: dict[str, float] = getattr(reward, key)
            for other, least in conditions.items():
                if other not in names or other == name:
                    return (
                        f"{name!r} has {key} {other!r}, which is not another reward of the task",
                        "list that reward too, with weight 0 if it is only a condition",
                    )
                if not math.isfinite(least):
                    return f"{key} of {name!r} asks for {least}", "ask for a finite number"
        for other, least in reward.only_if.items():
            if other in reward.unless and reward.unless[other] <= least:
                return (
                    f"{name!r} counts only_if {other!r} reaches {least:g}, and not from"
                    f" {reward.unless[other]:g} on, so it never counts",
                    "raise unless, or lower only_if",
                )
    return None


def closed_gate(reward: WeightedReward, values: Mapping[str, float | None]) -> str:
    """Return which condition of a reward fails, given the values of all, or "" where all hold.

    A reward that does not apply reaches no condition, and decides nothing.
    """
    for gate, least in reward.only_if.items():
        value = values[gate]
        if value is None:
            return f"{gate} does not apply"
        if value < least:
            return f"{gate} is below {least:g}"
    for gate, least in reward.unless.items():
        value = values[gate]
        if value is not None and value >= least:
            return f"{gate} decides, with {value:g}"
    return ""


def outcome_value(rewards: Sequence[WeightedReward], values: Mapping[str, float | None]) -> float | None:
    """Return how far an episode reached its task's outcome; None where nothing says so.

    The outcome is the first reward, and whatever stands in for it where it does not decide (see `unless`).
    """
    known = [
        value
        for reward in rewards
        if is_outcome(reward, rewards)
        and (value := values.get(reward.name)) is not None
        and not closed_gate(reward, values)
    ]
    return max(known, default=None)


def is_outcome(reward: WeightedReward, rewards: Sequence[WeightedReward]) -> bool:
    """Tell whether a reward is its task's outcome, or stands in for it."""
    return reward.name == rewards[0].name or rewards[0].name in reward.unless
