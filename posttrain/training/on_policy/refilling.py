"""Dynamic sampling: groups without signal give their places to further prompts before a step is learned.

A round begins when the one before has ended, so that at max_staleness 0 a repetition has the same batches. A
step that was not learned begins with its first round again, also in a resumed run; the prompts of a round
follow from seed, step and the outcomes of the rounds before, and nothing of them has to be saved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from posttrain.rollout.jobs import GroupJob, PlayedGroup
from posttrain.run.metric_names import REFILL_EPISODES, REFILL_GROUPS, REFILL_ROUNDS
from posttrain.training.on_policy.prompts import Drawn, StepPrompts
from posttrain.types import Trajectory


@dataclass
class Refills:
    """The rounds of one step.

    Attributes:
        prompts: Draw further prompts.
        drawn: Those of the step.
        rounds: Most rounds after the first.
        compare: Sets the advantages of trajectories.
        first: The groups of the first round, which tell of the policy without a choice of prompts.
        spent: The groups that were replaced.
        turn: The present round, counted from 0.
    """

    prompts: StepPrompts
    drawn: Drawn
    rounds: int
    compare: Callable[[Sequence[Trajectory]], object]
    first: Sequence[PlayedGroup] = ()
    spent: list[PlayedGroup] = field(default_factory=list)
    turn: int = 0

    def further(self, played: Sequence[PlayedGroup]) -> list[GroupJob]:
        """Return what takes the places of groups that teach nothing.

        Args:
            played: The step's groups, each in its place.
        """
        if not self.turn:
            self.first = played
        if self.turn == self.rounds:
            return []
        idle = [place for place, group in enumerate(played) if not self._teaches(group)]
        groups = self.prompts.refill(self.drawn, idle, self.turn + 1)
        self.turn += bool(groups)
        self.spent += [played[group.group] for group in groups]
        return groups

    @property
    def errors(self) -> int:
        """Number of episodes of replaced groups of which a reward failed."""
        return sum(
            trajectory.reward is None or trajectory.reward.total is None
            for group in self.spent
            for trajectory in group.trajectories
        )

    def metrics(self) -> dict[str, float]:
        """Count what was replaced, and what that cost; nothing where nothing may be."""
        if not self.rounds:
            return {}
        return {
            REFILL_ROUNDS: float(self.turn),
            REFILL_GROUPS: float(len(self.spent)),
            REFILL_EPISODES: float(sum(len(group.trajectories) for group in self.spent)),
        }

    def _teaches(self, group: PlayedGroup) -> bool:
        """Tell whether any episode of a group has an advantage that is not zero."""
        self.compare(group.trajectories)
        return any(trajectory.advantage for trajectory in group.trajectories)
