"""Rewards in the service of filters: reached by reference, run in processes that can be killed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import PluginRef
from posttrain.curation.outcomes import RowError
from posttrain.plugins import PluginError, resolve
from posttrain.types import RewardInput

#: Where the reward package offers what is needed here (posttrain does not import it).
LOAD_REWARD, SCORER, SPEC = (
    "rewards.sdk:load_reward",
    "rewards.workers.scorer:Scorer",
    "rewards.manager:RewardSpec",
)
_GROUP = "posttrain.rewards"


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
        base_dir: Folder against which file references are resolved.

    Raises:
        PluginError: If a reference does not lead to a reward, or to one that judges only groups.
        ValueError: If a reward does not take its params.
    """

    def __init__(self, rewards: Sequence[PluginRef], base_dir: Path):
        self._base_dir = base_dir
        load: Any = resolve(LOAD_REWARD, _GROUP)
        self._loaded = {ref.name: load(ref.name, base_dir) for ref in rewards}
        for ref in rewards:
            reward = self._loaded[ref.name]
            if reward.group:
                raise PluginError(f"reward {ref.name!r} judges groups of answers, a filter judges one")
            reward.check(ref.params)
        self._scorer: Any = None

    def __enter__(self) -> "Scoring":
        return self

    def __exit__(self, *_: object) -> None:
        if self._scorer is not None:
            self._scorer.close()

    def full(self, reward: PluginRef) -> float:
        """The value that a perfect answer gets."""
        return self._loaded[reward.name].high

    async def score(self, reward: PluginRef, inputs: Sequence[RewardInput]) -> list[Verdict]:
        """One verdict an answer, in order.

        Raises:
            RowError: If the reward failed on one of them; a failure is no verdict.
        """
        if not inputs:
            return []
        if self._scorer is None:
            scorer: Any = resolve(SCORER, _GROUP)
            self._scorer = scorer(list(self._loaded), base_dir=self._base_dir)
        spec: Any = resolve(SPEC, _GROUP)
        try:
            scoring = self._scorer.submit([spec(reward.name, params=reward.params)], inputs)
        except ValueError as error:
            raise RowError(f"reward {reward.name!r}: {error}") from None
        verdicts = []
        for result in await scoring.wait():
            if reward.name in result.errors:
                raise RowError(f"reward {reward.name!r}: {result.errors[reward.name]}")
            parts, note = result.parts.get(reward.name, {}), result.notes.get(reward.name, "")
            verdicts.append(Verdict(result.values[reward.name], parts, note))
        return verdicts
