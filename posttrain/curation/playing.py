"""What steps ask of whoever plays episodes; it loads no engine."""

from collections.abc import Callable, Sequence
from typing import Protocol

from posttrain.config.endpoints import CheckpointConfig
from posttrain.config.sampling_steps import PlayingStep
from posttrain.curation.outcomes import RowError
from posttrain.types import Sample, Trajectory


class PlaysEpisodes(Protocol):
    """What plays the task of a step."""

    async def play(self, row: int, sample: Sample) -> Sequence[Trajectory] | None:
        """Play a row's episodes and have them scored; None if its prompt leaves no room for an answer.

        Raises:
            RowError: If the row cannot be shown to the model.
            CurationError: If the engines cannot be started, or keep failing.
        """
        ...


#: From a step that plays, and its checkpoint, to what plays.
OpenEpisodes = Callable[[PlayingStep, CheckpointConfig], PlaysEpisodes]


def earned(played: Sequence[Trajectory], reward: str) -> list[float | None]:
    """Return what a reward gives each of a row's episodes; None where it does not apply.

    Raises:
        RowError: If it failed on one of them: a failure is no verdict.
    """
    values: list[float | None] = []
    for episode in played:
        verdict = episode.reward
        if verdict is None or reward in verdict.errors:
            reason = "it was not scored" if verdict is None else verdict.errors[reward]
            raise RowError(f"episode {episode.episode}: reward {reward!r}: {reason}")
        values.append(verdict.values.get(reward))
    return values
