"""Group-relative advantages: an episode's reward compared with the others of the same prompt."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from posttrain.config import AlgorithmConfig, Sapo
from posttrain.reward_spec import WeightedReward, closed_gate, is_outcome, outcome_value
from posttrain.types import RewardResult, Trajectory

#: Keeps a group whose rewards differ by rounding errors from getting large advantages.
EPSILON = 1e-4

#: The rewards of each task, by its name; the first one is its outcome (see `outcome_value`).
TaskRewards = Mapping[str, Sequence[WeightedReward]]


@dataclass(frozen=True)
class AdvantageCounts:
    """How many groups and episodes of a batch teach nothing or little, and why.

    Attributes:
        zero_groups: Groups whose episodes all got the same reward; their advantages are zero.
        dropped_groups: Groups with fewer than two scored episodes; none of their episodes has an advantage.
        errors: Episodes whose reward failed; they have no advantage and are not in the baseline.
        shaped_groups: Groups whose episodes all got the same outcome, and differ in other rewards alone.
    """

    zero_groups: int
    dropped_groups: int
    errors: int
    shaped_groups: int = 0


@dataclass(frozen=True)
class _Group:
    """The scored episodes of a prompt.

    Attributes:
        members: The episodes.
        rewards: What each is compared by.
        shaped: Whether they differ in other rewards than the outcome alone.
        deviation: The sample's standard deviation of the rewards.
    """

    members: list[Trajectory]
    rewards: list[float]
    shaped: bool
    deviation: float

    @property
    def alike(self) -> bool:
        """Whether there is nothing to compare."""
        return max(self.rewards) == min(self.rewards)


def assign_advantages(
    trajectories: Sequence[Trajectory],
    tasks: TaskRewards | None = None,
    algorithm: AlgorithmConfig | None = None,
) -> AdvantageCounts:
    """Set every trajectory's `advantage`: (R − baseline) / (deviation + 1e-4) within its group.

    The baseline is the group's mean or, left out one, the others': R − (ΣR − R) / (n − 1). The deviation is
    the group's or the whole batch's, of a sample (n − 1), as in TRL's GRPO; without one nothing is divided.
    An episode whose reward failed gets None: it is neither learnt from nor part of the mean (an error is
    never a zero). So does an episode that the world failed, which is no error of a reward.

    In a group that nobody solved bonuses do not count (see `unsolved_bonuses`), or they alone would make
    advantages as large as right against wrong does.

    Args:
        trajectories: Whole groups, scored; they are changed.
        tasks: The rewards of each task; of one without any the totals alone are compared.
        algorithm: How rewards are compared; as SAPO's defaults say if None.

    Source:
        DeepSeekMath (arXiv 2402.03300), section 4.1.2; SAPO (arXiv 2511.20347) uses the same. Without
        division: Dr. GRPO (arXiv 2503.20783), section 3.1. Leave one out: RLOO (arXiv 2402.14740), eq. 7.
    """
    algorithm = algorithm or Sapo(name="sapo")
    groups: dict[int, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.group, []).append(trajectory)
        trajectory.advantage = None
    scored: list[_Group] = []
    zero_groups = errors = 0
    for members in groups.values():
        found = [(each, each.reward) for each in members if each.reward and each.reward.total is not None]
        errors += sum(not each.failed for each in members) - len(found)
        if len(found) < 2:
            continue
        rewards = (tasks or {}).get(members[0].task, ())
        group = _compared(found, rewards, algorithm.unsolved_bonuses)
        zero_groups += group.alike and not group.shaped
        scored.append(group)
    whole = _deviation([reward for group in scored for reward in group.rewards])
    for group in scored:
        _assign(group, whole, algorithm)
    shaped = sum(group.shaped for group in scored)
    return AdvantageCounts(zero_groups, len(groups) - len(scored), errors, shaped)


def _assign(group: _Group, whole: float, algorithm: AlgorithmConfig) -> None:
    """Set the advantages of a group; `whole` is the deviation of the batch."""
    count = len(group.rewards)
    mean = math.fsum(group.rewards) / count
    # R − (ΣR − R) / (n − 1) = (R − mean) n / (n − 1)
    factor = count / (count - 1) if algorithm.baseline == "leave_one_out" else 1.0
    divisors = {"group": group.deviation + EPSILON, "batch": whole + EPSILON, "none": 1.0}
    divisor = divisors[algorithm.scale_rewards]
    for trajectory, reward in zip(group.members, group.rewards, strict=True):
        # Exactly zero, where (reward - mean) may leave a rounding error.
        trajectory.advantage = 0.0 if group.alike else factor * (reward - mean) / divisor


def _compared(
    found: Sequence[tuple[Trajectory, RewardResult]],
    rewards: Sequence[WeightedReward],
    unsolved_bonuses: bool,
) -> _Group:
    """Collect what the episodes of a group are compared by.

    Args:
        found: The scored episodes, with their scores.
        rewards: The rewards of their task.
        unsolved_bonuses: Whether bonuses count where nobody reached the outcome.
    """
    totals = [verdict.total or 0.0 for _, verdict in found]
    outcomes = [outcome_value(rewards, verdict.values) if rewards else None for _, verdict in found]
    known = [outcome for outcome in outcomes if outcome is not None]
    same = len(known) == len(outcomes) and max(known) == min(known)
    shaped = same and max(totals) != min(totals)
    if shaped and known[0] <= 0 and not unsolved_bonuses:
        totals = [_without_bonuses(verdict.values, rewards) for _, verdict in found]
    return _Group([trajectory for trajectory, _ in found], totals, shaped, _deviation(totals))


def _without_bonuses(values: Mapping[str, float | None], rewards: Sequence[WeightedReward]) -> float:
    """Add up the outcome and the penalties of an episode."""
    parts = [
        (reward.weight * value, is_outcome(reward, rewards))
        for reward in rewards
        if (value := values.get(reward.name)) is not None and not closed_gate(reward, values)
    ]
    return math.fsum(part for part, is_outcome in parts if is_outcome or part < 0)


def _deviation(values: Iterable[float]) -> float:
    """Compute the standard deviation of a sample; 0 of fewer than two values."""
    values = list(values)
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
