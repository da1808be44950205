"""What there is to say of a rollout's episodes: means over all of them, and over those of each task."""

from collections.abc import Sequence
from statistics import fmean

from posttrain.rollout.jobs import PlayedGroup
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
    TIME_ROLLOUT,
    TIME_TEACHER,
    of_task,
)
from posttrain.training.on_policy.signals.group_relative import AdvantageCounts
from posttrain.types import Trajectory


def rollout_metrics(trajectories: Sequence[Trajectory], counts: AdvantageCounts) -> dict[str, float]:
    """Compute means over a rollout's episodes: rewards by name, tool calls, turns, tokens; all of it by task.

    Those that the world failed are counted, and in no mean.

    Args:
        trajectories: The episodes, compared within their groups.
        counts: What the comparison counted.
    """
    failures = failure_metrics(trajectories)
    trajectories = [each for each in trajectories if not each.failed] or trajectories
    metrics = (
        failures
        | _means(trajectories)
        | {
            REWARD_ERRORS: float(counts.errors),
            ADVANTAGE_ZERO_GROUPS: float(counts.zero_groups),
            ADVANTAGE_DROPPED_GROUPS: float(counts.dropped_groups),
            ADVANTAGE_SHAPED_GROUPS: float(counts.shaped_groups),
        }
    )
    tasks: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        tasks.setdefault(trajectory.task, []).append(trajectory)
    if len(tasks) > 1:
        for task, members in tasks.items():
            own = _means(members) | {ADVANTAGE_ZERO_GROUPS: float(_silent_groups(members))}
            metrics |= {of_task(name, task): value for name, value in own.items()}
    return metrics


def _means(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Compute the means over some episodes."""
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
        **{name: fmean(values) for name, values in rewards.items()},
        EPISODE_TOOL_CALLS: fmean(calls),
        EPISODE_TURNS: fmean(turns),
        EPISODE_TOKENS: fmean(len(trajectory.token_ids) for trajectory in trajectories),
        EPISODE_TRUNCATED: fmean(trajectory.stop_reason != "answer" for trajectory in trajectories),
    }


def _silent_groups(trajectories: Sequence[Trajectory]) -> int:
    """Count the groups that were compared, and in which no episode was better than another."""
    groups: dict[int, list[float]] = {}
    for trajectory in trajectories:
        if trajectory.advantage is not None:
            groups.setdefault(trajectory.group, []).append(trajectory.advantage)
    return sum(not any(advantages) for advantages in groups.values())


def play_times(seconds: float, played: Sequence[PlayedGroup]) -> dict[str, float]:
    """Return how long a step's episodes took, and how long the step then waited for a teacher in engines.

    Args:
        seconds: From the start of the first group to the end of the last, and of what a teacher read of it.
        played: The groups.
    """
    if not any(group.read_at for group in played):
        return {TIME_ROLLOUT: seconds}
    waited = max(group.read_at for group in played) - max(group.played_at for group in played)
    return {TIME_ROLLOUT: seconds - waited, TIME_TEACHER: waited}
