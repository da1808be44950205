"""Objectives of reinforcement learning, and the groups that they compare."""

from typing import Annotated, Literal

from pydantic import Field

from posttrain.config.base import Positive, PositiveFloat, Section


class _Algorithm(Section):
    """The settings that all objectives have."""

    group_size: int = Field(
        default=16, ge=2, description="Episodes of each prompt; their mean is the baseline."
    )
    mini_batches: Positive = Field(default=2, description="Optimiser steps on each rollout batch.")
    importance_cap: PositiveFloat = Field(
        default=2.0, ge=1, description="Cap on a token's importance weight between engine and learner."
    )


class Sapo(_Algorithm):
    """Soft gates in place of clipping (arXiv 2511.20347)."""

    name: Literal["sapo"] = Field(description="Name of the objective.")
    tau_pos: PositiveFloat = Field(default=1.0, description="Sharpness of the gate on positive advantages.")
    tau_neg: PositiveFloat = Field(default=1.05, description="Sharpness of the gate on negative advantages.")


class Grpo(_Algorithm):
    """Clipping of each token's ratio (arXiv 2402.03300)."""

    name: Literal["grpo"] = Field(description="Name of the objective.")
    clip_low: PositiveFloat = Field(default=0.2, lt=1, description="Ratios are clipped below 1 - clip_low.")
    clip_high: PositiveFloat = Field(default=0.2, description="Ratios are clipped above 1 + clip_high.")


class Gspo(_Algorithm):
    """Clipping of each sequence's ratio (arXiv 2507.18071)."""

    name: Literal["gspo"] = Field(description="Name of the objective.")
    clip_low: PositiveFloat = Field(default=3e-4, lt=1, description="Ratios are clipped below 1 - clip_low.")
    clip_high: PositiveFloat = Field(default=4e-4, description="Ratios are clipped above 1 + clip_high.")


AlgorithmConfig = Annotated[Sapo | Grpo | Gspo, Field(discriminator="name")]
