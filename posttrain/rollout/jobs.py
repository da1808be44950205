"""What a rollout is asked for, and what it returns."""

from dataclasses import dataclass, field

from posttrain.inference.reading import Reading
from posttrain.types import Sample, Trajectory


@dataclass(frozen=True)
class GroupJob:
    """The episodes of one prompt.

    Attributes:
        group: Index of the prompt in its batch.
        task: Name of its task.
        sample: The prompt.
        size: Number of episodes to sample.
        seed: The group's seed; see `stable_seed`.

    Example:
        GroupJob(3, "markers", sample, size=8, seed=stable_seed(run_seed, step, 3))
    """

    group: int
    task: str
    sample: Sample
    size: int
    seed: int


@dataclass
class PlayedGroup:
    """A finished group.

    Attributes:
        trajectories: Its episodes' trajectories in order, checked, and scored if the setup has rewards.
        reward_seconds: Time that the rewards took after the last episode had ended.
        readings: What a teacher in engines says of each trajectory, None of those that the world failed;
            empty without such a teacher.
        played_at: `time.perf_counter()` of the run's own process when it got the episodes of such a stage.
        read_at: The same when it got the readings.
    """

    trajectories: list[Trajectory]
    reward_seconds: float
    readings: list[Reading | None] = field(default_factory=list)
    played_at: float = 0.0
    read_at: float = 0.0


@dataclass
class Rollout:
    """Finished groups.

    Attributes:
        trajectories: The episodes' trajectories, checked, and scored if the setup has rewards.
        reward_seconds: Time spent waiting for rewards after the last episode had ended.
    """

    trajectories: list[Trajectory] = field(default_factory=list)
    reward_seconds: float = 0.0
