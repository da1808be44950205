"""Group-relative advantages: an episode's reward compared with the others of the same prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.types import Trajectory

#: Keeps a group whose rewards differ by rounding errors from getting large advantages.
EPSILON = 1e-4


@dataclass(frozen=True)
class AdvantageCounts:
    """How many groups and episodes of a batch teach nothing, and why.

    Attributes:
        zero_groups: Groups whose episodes all got the same reward; their advantages are zero.
        dropped_groups: Groups with fewer than two scored episodes; none of their episodes has an advantage.
        errors: Episodes whose reward failed; they have no advantage and are not in the baseline.
    """

    zero_groups: int
    dropped_groups: int
    errors: int


def assign_advantages(trajectories: Sequence[Trajectory]) -> AdvantageCounts:
    """Set every trajectory's `advantage`: (R − mean) / (std + 1e-4) within its group.

    The standard deviation is the sample's (n − 1), as in TRL's GRPO. An episode whose reward failed gets
    None: it is neither learnt from nor part of the mean (an error is never a zero). So does an episode that
    the world failed, which is no error of a reward.

    Args:
        trajectories: Whole groups, scored; they are changed.

    Source:
        DeepSeekMath (arXiv 2402.03300), section 4.1.2; SAPO (arXiv 2511.20347) uses the same.
    """
    groups: dict[int, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.group, []).append(trajectory)
    zero_groups = dropped_groups = errors = 0
    for members in groups.values():
        scored: list[tuple[Trajectory, float]] = []
        for trajectory in members:
            trajectory.advantage = None
            if trajectory.reward is not None and trajectory.reward.total is not None:
                scored.append((trajectory, trajectory.reward.total))
        errors += sum(not trajectory.failed for trajectory in members) - len(scored)
        if len(scored) < 2:
            dropped_groups += 1
            continue
        rewards = [reward for _, reward in scored]
        mean = math.fsum(rewards) / len(rewards)
        std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
        equal = max(rewards) == min(rewards)
        zero_groups += equal
        for trajectory, reward in scored:
            # Exactly zero, where (reward - mean) may leave a rounding error.
            trajectory.advantage = 0.0 if equal else (reward - mean) / (std + EPSILON)
    return AdvantageCounts(zero_groups, dropped_groups, errors)
