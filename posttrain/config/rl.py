"""Reinforcement learning: the objective, beside what all on-policy stages have."""

from typing import Literal

from pydantic import Field

from posttrain.config.base import Name, Positive, Section
from posttrain.config.objectives import AlgorithmConfig, Sapo
from posttrain.config.on_policy import OnPolicyStage


class DynamicSampling(Section):
    """Groups without signal are replaced before a step is learned (DAPO, arXiv 2503.14476).

    Where all episodes of a prompt earn the same, nothing can be learned from them. Such a prompt, and one of
    which fewer than two episodes could be scored, gives its place to the next of its task, so tasks keep
    their shares; after the last round those that are left stay.
    """

    max_rounds: Positive = Field(
        default=3, description="Most rounds of further prompts in a step; each replaces what has no signal."
    )


class RlStage(OnPolicyStage):
    """Group-relative RL on episodes, with the tools that each task offers."""

    stage: Literal["rl"] = Field(description="Kind of the stage.")
    name: Name = Field(default="rl", description="Name of the stage's folder and of its metrics.")
    algorithm: AlgorithmConfig = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=lambda: Sapo(name="sapo"), description="The objective and the groups it compares."
    )
    dynamic_sampling: DynamicSampling | None = Field(
        default=None,
        description="Replace prompts whose episodes teach nothing by others of the same task; not if absent.",
    )

    @property
    def episodes_per_prompt(self) -> int:
        """Episodes of each prompt, which are compared with each other."""
        return self.algorithm.group_size

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps on each rollout batch."""
        return self.algorithm.mini_batches

    @property
    def refill_rounds(self) -> int:
        """Most rounds of further prompts in a step, in place of those without signal."""
        return 0 if self.dynamic_sampling is None else self.dynamic_sampling.max_rounds
