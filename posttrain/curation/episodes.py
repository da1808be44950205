"""Episodes of a curation's rows, played by engines as an rl stage plays its prompts."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from posttrain.config.sampling_steps import PlayingStep
from posttrain.curation.outcomes import CurationError, RowError
from posttrain.inference.engine import stable_seed
from posttrain.rollout.episode import EpisodeError, Limits
from posttrain.rollout.jobs import GroupJob
from posttrain.rollout.play import MeasurePrompts, PlayGroup, RolloutPool
from posttrain.types import Sample, Trajectory


@dataclass
class PooledEpisodes:
    """The task of a step on a pool of engines, a group of episodes for each row (see `PlaysEpisodes`).

    Attributes:
        step: The step.
        open_pool: Starts the pool, or returns it; called in a thread when the first row comes.
        task: What the pool calls the step's task.
        max_length: Most tokens of an episode.
        seed: Seed of the curation.
    """

    step: PlayingStep
    open_pool: Callable[[], RolloutPool]
    task: str
    max_length: int
    seed: int

    def __post_init__(self) -> None:
        self._opening = asyncio.Lock()

    async def play(self, row: int, sample: Sample) -> Sequence[Trajectory] | None:
        """Play a row's episodes; which random numbers they get depends on seed, step and row alone."""
        limits = Limits(self.step.max_new_tokens, self.max_length, temperature=self.step.temperature)
        seed = stable_seed(self.seed, "curation", self.step.name, row)
        group = GroupJob(row, self.task, sample, self.step.samples, seed)
        try:
            async with self._opening:
                pool = await asyncio.to_thread(self.open_pool)
            [measured] = pool.submit([MeasurePrompts([group])])
            tokens = await asyncio.wrap_future(measured)
            if not limits.leave_room(tokens[row]):
                return None
            [played] = pool.submit([PlayGroup(group, limits)])
            return (await asyncio.wrap_future(played)).trajectories
        except EpisodeError as error:
            raise RowError(str(error)) from None
        except Exception as error:  # of Ray, vLLM or the reward server: no row will fare better
            reason = f"{type(error).__name__}: {error}"
            raise CurationError(f"step {self.step.name}: episodes cannot be played: {reason}") from error
