"""What a rollout is asked for, and what comes of it."""

from dataclasses import dataclass, field

from posttrain.types import Sample, Trajectory


@dataclass(frozen=True)
class GroupJob:
    """The episodes of one prompt.

    Attributes:
        group: Index of the prompt in its batch.
        task: Name of its task.
        sample: The prompt.
        size: How many episodes to sample.
        seed: Of the group; see `stable_seed`.

    Example:
        GroupJob(3, "markers", sample, size=8, seed=stable_seed(run_seed, step, 3))
    """

    group: int
    task: str
    sample: Sample
    size: int
    seed: int


@dataclass
class Rollout:
    """Finished groups.

    Attributes:
        trajectories: Checked, and scored where the setup has rewards.
        reward_seconds: Time spent waiting for rewards after the last episode was over.
    """

    trajectories: list[Trajectory] = field(default_factory=list)
    reward_seconds: float = 0.0
