"""What there is to say of a step's episodes."""

from collections.abc import Sequence
from statistics import fmean

from posttrain.rollout.world import failure_metrics
from posttrain.run.metric_names import (
    ADVANTAGE_DROPPED_GROUPS,
    ADVANTAGE_SHAPED_GROUPS,
    ADVANTAGE_ZERO_GROUPS,
    EPISODE_TOKENS,
    EPISODE_TOOL_CALLS,
    EPISODE_TRUNCATED,
    EPISODE_TURNS,
    REWARD,
    REWARD_ERRORS,
    REWARD_MEAN,
)
from posttrain.training.on_policy.signals.group_relative import AdvantageCounts
from posttrain.types import Trajectory


def rollout_metrics(trajectories: Sequence[Trajectory], counts: AdvantageCounts) -> dict[str, float]:
    """Compute means over a rollout's episodes: rewards by name, tool calls, turns, tokens.

    Those that the world failed are counted, and in no mean.
    """
    failures = failure_metrics(trajectories)
    trajectories = [each for each in trajectories if not each.failed] or trajectories
    rewards: dict[str, list[float]] = {}  # by metric name
    for trajectory in trajectories:
        verdict = trajectory.reward
        if verdict is None or verdict.total is None:
            continue
        rewards.setdefault(REWARD_MEAN, []).append(verdict.total)
        for name, value in verdict.values.items():
            if value is not None:
                rewards.setdefault(REWARD + name, []).append(value)
    calls = [sum(call.images > 0 for call in trajectory.tool_calls) for trajectory in trajectories]
    turns = [sum(m.role == "assistant" for m in trajectory.response) for trajectory in trajectories]
    return {
        **failures,
        **{name: fmean(values) for name, values in rewards.items()},
        REWARD_ERRORS: float(counts.errors),
        ADVANTAGE_ZERO_GROUPS: float(counts.zero_groups),
        ADVANTAGE_DROPPED_GROUPS: float(counts.dropped_groups),
        ADVANTAGE_SHAPED_GROUPS: float(counts.shaped_groups),
        EPISODE_TOOL_CALLS: fmean(calls),
        EPISODE_TURNS: fmean(turns),
        EPISODE_TOKENS: fmean(len(trajectory.token_ids) for trajectory in trajectories),
        EPISODE_TRUNCATED: fmean(trajectory.stop_reason != "answer" for trajectory in trajectories),
    }
