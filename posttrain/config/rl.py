"""Reinforcement learning: objective, tasks, batch and learner."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.base import (
    MisfitError,
    Name,
    Natural,
    NaturalFloat,
    Positive,
    PositiveFloat,
    Section,
    check_shares,
)
from posttrain.config.rollout import RolloutConfig
from posttrain.config.tasks import RlTask
from posttrain.config.trainer import Scheduler, TrainedStage


class _Algorithm(Section):
    """What the objectives share."""

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


class RlStage(TrainedStage):
    """Group-relative RL on episodes, with tools where a task offers them."""

    stage: Literal["rl"] = Field(description="Kind of the stage.")
    name: Name = Field(default="rl", description="Name of the stage's folder and of its metrics.")
    algorithm: AlgorithmConfig = Field(
        default_factory=lambda: Sapo(name="sapo"), description="The objective and the groups it compares."
    )
    tasks: list[RlTask] = Field(min_length=1, description="What is learned, in fixed shares of every batch.")
    prompts_per_step: Positive = Field(default=64, description="Prompts of a rollout batch.")
    max_steps: Positive = Field(description="Rollout batches in total.")
    learning_rate: PositiveFloat = Field(default=1e-6, description="Peak rate of AdamW.")
    lr_scheduler_type: Scheduler = Field(default="constant", description="How the rate falls after warm-up.")
    warmup_steps: Natural = Field(default=0, description="Rollout batches during which the rate rises.")
    weight_decay: NaturalFloat = Field(default=0.0, description="Decoupled weight decay.")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="Norm to which gradients are clipped.")
    micro_batch_size: Positive = Field(
        default=1, description="Sequences that a learner process takes at once."
    )
    num_workers: Positive = Field(default=1, description="Learner processes.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="How episodes are generated.")
    save_steps: Positive = Field(default=50, description="Rollout batches between checkpoints.")
    logprob_tolerance: PositiveFloat = Field(
        default=1e-4,
        description="Largest gap between engine's and learner's log-probabilities before the run stops: "
        "of any token in float32 (1e-4), in the mean in bfloat16 (0.05 if absent).",
    )

    @property
    def episodes_per_step(self) -> int:
        """Episodes of a rollout batch."""
        return self.prompts_per_step * self.algorithm.group_size

    @model_validator(mode="after")
    def _check(self) -> "RlStage":
        ratios: dict[str, float] = {}
        for task in self.tasks:
            if task.name in ratios:
                raise MisfitError(
                    "tasks", f"two tasks are named {task.name!r}", "give one of them another name"
                )
            ratios[task.name] = task.ratio
        check_shares("tasks", ratios)
        parts = self.algorithm.mini_batches
        if self.prompts_per_step % parts:
            raise MisfitError(
                "prompts_per_step",
                f"{self.prompts_per_step} prompts cannot be split evenly into {parts} mini_batches",
                f"use {math.ceil(self.prompts_per_step / parts) * parts}, or another algorithm.mini_batches",
            )
        share = self.episodes_per_step // parts / self.num_workers
        if self.micro_batch_size > max(1, share):
            raise MisfitError(
                "micro_batch_size",
                f"a learner process has only {share:g} sequences in a mini-batch "
                f"({self.episodes_per_step} episodes / {parts} mini_batches / {self.num_workers} workers), "
                f"fewer than {self.micro_batch_size}",
                f"use {max(1, int(share))} or less",
            )
        if self.warmup_steps >= self.max_steps:
            raise MisfitError(
                "warmup_steps",
                f"{self.warmup_steps} warm-up steps fill the {self.max_steps} steps of the stage",
                f"use less than {self.max_steps}",
            )
        return self
