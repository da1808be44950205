"""Reinforcement learning: the objective, beside what all on-policy stages have."""

from typing import Literal

from pydantic import Field

from posttrain.config.base import Name
from posttrain.config.objectives import AlgorithmConfig, Sapo
from posttrain.config.on_policy import OnPolicyStage


class RlStage(OnPolicyStage):
    """Group-relative RL on episodes, with the tools that each task offers."""

    stage: Literal["rl"] = Field(description="Kind of the stage.")
    name: Name = Field(default="rl", description="Name of the stage's folder and of its metrics.")
    algorithm: AlgorithmConfig = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=lambda: Sapo(name="sapo"), description="The objective and the groups it compares."
    )

    @property
    def episodes_per_prompt(self) -> int:
        """Episodes of each prompt, which are compared with each other."""
        return self.algorithm.group_size

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps on each rollout batch."""
        return self.algorithm.mini_batches
