"""Play episodes on a pool of workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from posttrain.inference.pool import InferencePool, PoolError
from posttrain.inference.worker import InferenceWorker
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob, Rollout
from posttrain.rollout.worker import RolloutWorker


@dataclass(frozen=True)
class PlayGroups:
    """A job: run and score whole groups.

    Attributes:
        groups: The groups, with distinct indices.
        limits: Lengths and temperature of the episodes.
    """

    groups: Sequence[GroupJob]
    limits: Limits

    def __call__(self, worker: RolloutWorker) -> Rollout:
        """Return the groups' trajectories, played on the worker's engine."""
        return worker.rollout(self.groups, self.limits)


@dataclass(frozen=True)
class MeasurePrompts:
    """A job: count the tokens of the prompts of groups, without the engine.

    Attributes:
        groups: The groups, with distinct indices.
    """

    groups: Sequence[GroupJob]

    def __call__(self, worker: RolloutWorker) -> dict[int, int]:
        """Return the tokens of each group's prompt, by the group's index."""
        return worker.prompt_tokens(self.groups)


class RolloutPool(InferencePool):
    """A pool whose workers also play episodes.

    Example:
        pool = RolloutPool(setup, actors=2, use_gpu=False)
        pool.publish(path, version=1)
        trajectories = pool.rollout(groups, limits).trajectories
        pool.close()
    """

    worker_class: ClassVar[type[InferenceWorker]] = RolloutWorker

    def prompt_tokens(self, groups: Sequence[GroupJob]) -> dict[int, int]:
        """Count the tokens of prompts as their episodes will show them, before any engine sees them.

        Args:
            groups: The groups, with distinct indices.

        Returns:
            The tokens of each group's prompt, by the group's index.

        Raises:
            EpisodeError: If a prompt cannot be shown.
            PoolError: If workers were lost more than `max_restarts` times.
        """
        parts = self.divide(MeasurePrompts, groups)
        return {group: tokens for part in parts for group, tokens in part.items()}

    def rollout(self, groups: Sequence[GroupJob], limits: Limits) -> Rollout:
        """Run groups of episodes and score them.

        Args:
            groups: The groups, with distinct indices.
            limits: Lengths and temperature of this rollout.

        Returns:
            The trajectories by (group, episode), and the longest wait for rewards.

        Raises:
            PoolError: If workers were lost more than `max_restarts` times.
            Exception: A worker's exception, such as the reward client's if its server does not answer.
        """
        return _gather(groups, self.divide(partial(PlayGroups, limits=limits), groups))


def _gather(groups: Sequence[GroupJob], parts: Sequence[Rollout]) -> Rollout:
    """Join the workers' parts; every episode asked for must be there exactly once."""
    trajectories = [trajectory for part in parts for trajectory in part.trajectories]
    trajectories.sort(key=lambda trajectory: (trajectory.group, trajectory.episode))
    expected = sorted((group.group, episode) for group in groups for episode in range(group.size))
    if [(trajectory.group, trajectory.episode) for trajectory in trajectories] != expected:
        raise PoolError("the workers returned other episodes than they were asked for")
    return Rollout(trajectories, max((part.reward_seconds for part in parts), default=0.0))
