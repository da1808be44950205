"""The rewards of a curation's steps, run in processes of their own as in training."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from posttrain.config.tasks import PluginRef
from posttrain.curation.checks import load_judges
from posttrain.curation.outcomes import RowError
from posttrain.joints import Plugins, RewardScorer
from posttrain.types import RewardInput


@dataclass(frozen=True)
class Verdict:
    """What a reward says of one answer.

    Attributes:
        value: Its value; None where it does not apply.
        parts: Its components.
        note: One line on why.
    """

    value: float | None
    parts: dict[str, float]
    note: str


class Scoring:
    """The rewards of a curation; a context manager whose processes start when first used.

    Args:
        rewards: References with their params.
        plugins: Load and run them.
        base_dir: Folder against which file references are resolved.

    Raises:
        PluginError, ValueError: As `load_judges` says.
    """

    def __init__(self, rewards: Sequence[PluginRef], plugins: Plugins, base_dir: Path):
        self._base_dir, self._plugins = base_dir, plugins
        self._loaded = load_judges(rewards, plugins, base_dir)
        self._stack = ExitStack()
        self._scorer: RewardScorer | None = None

    def __enter__(self) -> "Scoring":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def full(self, reward: PluginRef) -> float:
        """Return the value that a perfect answer gets, also of a reward that scores elsewhere."""
        loaded = self._loaded.get(reward.name)
        return (loaded or self._plugins.load_reward(reward.name, self._base_dir)).high

    async def score(self, reward: PluginRef, inputs: Sequence[RewardInput]) -> list[Verdict]:
        """Return one verdict an answer, in order.

        Raises:
            RowError: If the reward failed on one of them; a failure is no verdict.
        """
        if not inputs:
            return []
        if self._scorer is None:
            scorer = self._plugins.make_scorer(list(self._loaded), self._base_dir)
            self._scorer = self._stack.enter_context(scorer)
        try:
            results = await self._scorer.score(reward.name, reward.params, inputs)
        except ValueError as error:
            raise RowError(f"reward {reward.name!r}: {error}") from None
        verdicts = []
        for result in results:
            if reward.name in result.errors:
                raise RowError(f"reward {reward.name!r}: {result.errors[reward.name]}")
            parts, note = result.parts.get(reward.name, {}), result.notes.get(reward.name, "")
            verdicts.append(Verdict(result.values[reward.name], parts, note))
        return verdicts
