"""Play episodes on a pool of workers."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from posttrain.concurrency import all_or_first_failure
from posttrain.inference.engine import stable_seed
from posttrain.inference.pool import InferencePool, collect
from posttrain.inference.serving import aside
from posttrain.inference.worker import InferenceWorker
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeJob, EpisodePlayer, Limits, TaskEnvironments, prompt_tokens
from posttrain.rollout.jobs import GroupJob, PlayedGroup, Rollout
from posttrain.rollout.worker import RolloutWorker

#: Most prompts that one job measures.
MEASURED_AT_ONCE = 256


@dataclass(frozen=True)
class PlayGroup:
    """A job: play the episodes of a group, and have them scored once the last one is over.

    Attributes:
        group: The group.
        limits: Lengths and temperature of its episodes; `max_length` is at most the setup's.
    """

    group: GroupJob
    limits: Limits

    @property
    def size(self) -> int:
        """Number of sequences that are sampled."""
        return self.group.size

    async def __call__(self, worker: RolloutWorker) -> PlayedGroup:
        """Return the group's trajectories.

        Raises:
            EpisodeError: If the prompt cannot be shown or leaves no room for an answer.
            LedgerError: If a trajectory breaks an invariant.
            Exception: The reward client's error if its server does not answer; it says what to do.
        """
        group = self.group
        slots = [worker.serving.slot() for _ in range(group.size)]
        player = EpisodePlayer(worker, worker.environments[group.task], self.limits)
        try:
            await slots[0].near
            player.prepare(group.sample)
            seeds = [stable_seed(group.seed, index) for index in range(group.size)]
            jobs = [
                EpisodeJob(group.sample, group.task, group.group, index, seed)
                for index, seed in enumerate(seeds)
            ]
            members = await all_or_first_failure(map(player.play, jobs, slots))
        finally:
            player.close()
            for slot in slots:
                slot.close()
        ended = time.perf_counter()
        await aside(worker.rewards, worker.reward, members, group.sample)
        return PlayedGroup(members, time.perf_counter() - ended)


@dataclass(frozen=True)
class MeasurePrompts:
    """A job: count the tokens of the prompts of groups, without the engine.

    Attributes:
        groups: The groups, with distinct indices.
    """

    groups: Sequence[GroupJob]

    @property
    def size(self) -> int:
        """Number of sequences that are sampled: none."""
        return 0

    async def __call__(self, worker: RolloutWorker) -> dict[int, int]:
        """Return the tokens of each group's prompt, by the group's index; no image is decoded."""
        return await aside(worker.rendering, measure, self.groups, worker.renderer, worker.environments)


class RolloutPool(InferencePool):
    """A pool whose workers also play episodes.

    Example:
        pool = RolloutPool(setup, actors=2, use_gpu=False)
        pool.publish(CheckpointWeights(path, version=1))
        trajectories = pool.rollout(groups, limits).trajectories
        futures = pool.submit([PlayGroup(group, limits) for group in groups])
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
        size = max(1, min(MEASURED_AT_ONCE, math.ceil(len(groups) / self.actors)))
        parts = [MeasurePrompts(groups[start : start + size]) for start in range(0, len(groups), size)]
        return {group: tokens for part in collect(self.submit(parts)) for group, tokens in part.items()}

    def rollout(self, groups: Sequence[GroupJob], limits: Limits) -> Rollout:
        """Play groups of episodes and wait for all of them.

        Args:
            groups: The groups, with distinct indices.
            limits: Lengths and temperature of this rollout.

        Returns:
            The trajectories by (group, episode), and the wait for the rewards of the group that came last.

        Raises:
            PoolError: If workers were lost more than `max_restarts` times.
            Exception: A worker's exception, such as the reward client's if its server does not answer.
        """
        arrived: list[PlayedGroup] = []
        futures = self.submit([PlayGroup(group, limits) for group in groups])
        played = collect(futures, arrived.append)
        trajectories = [trajectory for group in played for trajectory in group.trajectories]
        trajectories.sort(key=lambda trajectory: (trajectory.group, trajectory.episode))
        return Rollout(trajectories, arrived[-1].reward_seconds if arrived else 0.0)


def measure(
    groups: Sequence[GroupJob], renderer: Renderer, environments: Mapping[str, TaskEnvironments]
) -> dict[int, int]:
    """Count the tokens of each group's prompt, by the group's index; no image is decoded."""
    counting = renderer.counting()
    return {group.group: prompt_tokens(counting, environments, group.sample, group.task) for group in groups}
