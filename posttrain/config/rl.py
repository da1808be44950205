"""Reinforcement learning: objective, tasks, batch and learner."""

import math
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config.base import (
    MisfitError,
    Name,
    NaturalFloat,
    Positive,
    PositiveFloat,
    Section,
    check_shares,
)
from posttrain.config.learning import LearningStage, Scheduler
from posttrain.config.memory import LearnerLoad
from posttrain.config.rollout import OnPolicyRolloutConfig
from posttrain.config.stage import CurationUse, Surroundings, TaskUse
from posttrain.config.tasks import RlTask


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


#: Largest gap between engine's and learner's log-probs that rounding explains, by the type of the weights.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}

AlgorithmConfig = Annotated[Sapo | Grpo | Gspo, Field(discriminator="name")]


class DynamicSampling(Section):
    """Groups without signal are replaced before a step is learned (DAPO, arXiv 2503.14476).

    Where all episodes of a prompt earn the same, nothing can be learned from them. Such a prompt, and one of
    which fewer than two episodes could be scored, gives its place to the next of its task, so tasks keep
    their shares; after the last round those that are left stay.
    """

    max_rounds: Positive = Field(
        default=3, description="Most rounds of further prompts in a step; each replaces what has no signal."
    )


class RlStage(LearningStage):
    """Group-relative RL on episodes, with the tools that each task offers."""

    runner: ClassVar[str] = "posttrain.training.on_policy.controller:OnPolicyRunner"
    unsupported: ClassVar[dict[str, tuple[str, str]]] = {
        "num_train_epochs": ("the length of an rl stage is counted in rollout batches", "write max_steps"),
        "per_device_batch_size": (
            "a learner takes as many episodes at once as fit a packed row",
            "remove it; max_batch_tokens is the length of a row",
        ),
        "gradient_accumulation_steps": (
            "how many packed rows a learner takes one after another follows from prompts_per_step, "
            "algorithm.group_size, algorithm.mini_batches and the lengths of the episodes",
            "remove it; max_batch_tokens is the length of a row",
        ),
        "global_batch_size": (
            "an rl stage learns from prompts_per_step × algorithm.group_size episodes a step",
            "write prompts_per_step",
        ),
        "logging_steps": ("every rollout batch has its row of metrics", "remove it"),
    }

    stage: Literal["rl"] = Field(description="Kind of the stage.")
    name: Name = Field(default="rl", description="Name of the stage's folder and of its metrics.")
    algorithm: AlgorithmConfig = Field(
        default_factory=lambda: Sapo(name="sapo"), description="The objective and the groups it compares."
    )
    tasks: list[RlTask] = Field(min_length=1, description="What is learned, in fixed shares of every batch.")
    curation: str | None = Field(
        default=None,
        min_length=1,
        description="Curation recipe, by name or path, that the dataset of a task that it names goes through "
        "first. In its pass_rate steps without an endpoint the model that the stage starts from plays that "
        "task. The recipe's own `name` and `output_dir` do not count: the results are in the stage's folder.",
    )
    dynamic_sampling: DynamicSampling | None = Field(
        default=None,
        description="Replace prompts whose episodes teach nothing by others of the same task; none if absent.",
    )
    prompts_per_step: Positive = Field(default=64, description="Prompts of a rollout batch.")
    max_batch_tokens: Positive | None = Field(
        default=None,
        description="Most tokens of the packed row of episodes that a learner takes at once; "
        "rollout.max_length if absent.",
    )
    max_steps: Positive = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        description="Rollout batches in total."
    )
    learning_rate: PositiveFloat = Field(default=1e-6, description="Peak learning rate.")
    lr_scheduler_type: Scheduler = Field(default="constant", description="How the rate falls after warm-up.")
    warmup_ratio: NaturalFloat = Field(
        default=0.0, le=1, description="Share of the rollout batches during which the rate rises."
    )
    rollout: OnPolicyRolloutConfig = Field(
        default_factory=OnPolicyRolloutConfig, description="How episodes are generated."
    )
    save_steps: Positive = Field(default=50, description="Rollout batches between checkpoints.")
    logprob_tolerance: PositiveFloat | None = Field(
        default=None,
        description="Largest gap between engine's and learner's log-probabilities before the run stops. If "
        "absent, 1e-4 for any token of a float32 model, and 0.05 in the mean of a bfloat16 model's, of which "
        "no class of tokens (coordinates, other digits, tool markup, text) may have more than 1 % that "
        "differ by ten times as much.",
    )

    @property
    def cores(self) -> int:
        """Number of cores that the learners wait for: none, since they take turns with the engines."""
        return 0

    @property
    def batch_tokens(self) -> int:
        """Most tokens of the packed row that a learner takes at once."""
        return self.max_batch_tokens or self.rollout.max_length

    def load(self) -> LearnerLoad:
        """Return what a learner holds; it takes its share of a mini-batch in rows."""
        share = math.ceil(self.episodes_per_step // self.algorithm.mini_batches / self.num_workers)
        return replace(super().load(), accumulates=share * self.rollout.max_length > self.batch_tokens)

    @property
    def engines(self) -> int:
        """Number of engines that generate episodes."""
        return self.rollout.actors

    @property
    def episodes(self) -> OnPolicyRolloutConfig:
        """How the stage generates episodes."""
        return self.rollout

    def check_in_run(self, around: Surroundings) -> None:
        """Check also that the engines are not to play while they sleep."""
        super().check_in_run(around)
        if around.shared and self.rollout.max_staleness:
            raise MisfitError(
                "rollout.max_staleness",
                "with cluster.placement: shared the engines sleep while the learners work, and cannot play "
                "the next steps' prompts meanwhile",
                "remove it, or remove cluster.placement",
            )

    def curations(self) -> list[CurationUse]:
        """Return the recipe that `curation` names."""
        if self.curation is None:
            return []
        return [CurationUse(("curation",), self.curation, [task.data for task in self.tasks], self.tasks)]

    def tasks_played(self) -> list[TaskUse]:
        """List the tasks that are learned."""
        return [TaskUse(("tasks", number), task) for number, task in enumerate(self.tasks)]

    def tolerance(self, dtype: str) -> float:
        """Return `logprob_tolerance`, or the usual one for weights of a type."""
        return self.logprob_tolerance or TOLERANCES[dtype]

    def arithmetic(self) -> list[tuple[str, str]]:
        """Return the calculations of prompts, episodes and updates."""
        algorithm, episodes = self.algorithm, self.episodes_per_step
        part = episodes // algorithm.mini_batches
        share = math.ceil(part / self.num_workers)
        prompts = ", ".join(f"{task.name} {task.ratio * self.prompts_per_step:g}" for task in self.tasks)
        updates = self.max_steps * algorithm.mini_batches
        ahead = self.rollout.max_staleness
        return [
            ("prompts a step", prompts),
            ("episodes a step", f"{self.prompts_per_step} prompts × {algorithm.group_size} = {episodes}"),
            (
                "episodes an update",
                f"{episodes} / {algorithm.mini_batches} mini-batches = {part}; {share} a learner process, "
                f"in rows of up to {self.batch_tokens:,} tokens",
            ),
            ("updates", f"{self.max_steps} steps × {algorithm.mini_batches} = {updates:,}"),
            ("episodes", f"{self.max_steps} steps × {episodes} = {self.max_steps * episodes:,}{self._more()}"),
            (
                "episodes in flight",
                f"at most {ahead + 1} steps × {episodes} = {(ahead + 1) * episodes:,}; "
                + (
                    f"a token is up to {ahead} versions older than the weights that learn from it"
                    if ahead
                    else "engines and learners take turns (rollout.max_staleness = 0)"
                ),
            ),
        ]

    def _more(self) -> str:
        """Say how many episodes dynamic sampling may add."""
        if self.dynamic_sampling is None:
            return ""
        rounds = self.dynamic_sampling.max_rounds
        return f"; dynamic_sampling may add up to {rounds} times as many"

    def adapter_rank(self, use_gpu: bool) -> int:
        """Rank of the adapters that engines are sent beside the base weights; 0 if they get whole weights."""
        quantized = self.lora is not None and self.lora.quantization is not None
        usual = "adapter" if use_gpu and not quantized else "merged"
        alone = (self.rollout.publish or usual) == "adapter"
        return self.lora.rank if self.lora is not None and alone else 0

    @property
    def busy_beside_engines(self) -> int:
        """Number of learner processes that compute at the same time as the engines."""
        return self.num_workers if self.rollout.max_staleness else 0

    @property
    def episodes_in_flight(self) -> tuple[int, int]:
        """Episodes of a step, and steps whose episodes exist at the same time."""
        return self.episodes_per_step, 1 + self.rollout.max_staleness

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
        if self.batch_tokens < self.rollout.max_length:
            raise MisfitError(
                "max_batch_tokens",
                f"an episode of up to rollout.max_length = {self.rollout.max_length} tokens has to fit a row",
                "raise it, or remove it",
            )
        self._check_adapters()
        return self

    def _check_adapters(self) -> None:
        """Check that engines can compute what learners of adapters do."""
        if self.lora is None:
            return
        if self.lora.dropout:
            raise MisfitError(
                "lora.dropout",
                "engines sample without dropout, and episodes are learned with the log-probs that they were "
                "sampled with",
                "remove it",
            )
        if self.lora.quantization == "int8":
            raise MisfitError(
                "lora.quantization",
                "int8 rounds what it multiplies as well as the weights, and engines do not: they would "
                "sample from another policy",
                "use nf4",
            )
        if self.lora.quantization is not None and self.rollout.publish == "adapter":
            raise MisfitError(
                "rollout.publish",
                "beside the weights as they were before they were quantised, adapters are another policy",
                "remove it: engines then get the quantised weights with the adapters merged into them",
            )

    @model_validator(mode="after")
    def _check_rollout(self) -> "RlStage":
        ahead = self.rollout.max_staleness
        if ahead and ahead >= self.max_steps:
            raise MisfitError(
                "rollout.max_staleness",
                f"{ahead} is no bound in a stage of {self.max_steps} steps: its first weights would play all "
                "of its prompts",
                "lower it: 1 or 2 keep engines and learners busy",
            )
        if self.rollout.publish is not None and self.lora is None:
            raise MisfitError(
                "rollout.publish", "there are no adapters to publish", "remove it, or add a `lora` section"
            )
        return self
