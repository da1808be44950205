"""What RL and on-policy distillation share: both learn from episodes that the policy itself plays."""

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, NaturalFloat, Positive, PositiveFloat, check_shares
from posttrain.config.learning import LearningStage, Scheduler
from posttrain.config.lora import LoraConfig
from posttrain.config.memory import LearnerLoad
from posttrain.config.objectives import AlgorithmConfig
from posttrain.config.rollout import OnPolicyRolloutConfig
from posttrain.config.stage import CurationUse, Surroundings, TaskUse
from posttrain.config.tasks import RlTask, check_lengths

#: Largest gap between engine's and learner's log-probs that rounding explains, by the type of the weights.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}


class OnPolicyStage(LearningStage, ABC):
    """A stage that learns from episodes which the policy plays, with the tools that each task offers."""

    runner: ClassVar[str] = "posttrain.training.on_policy.runner:OnPolicyRunner"
    unsupported: ClassVar[dict[str, tuple[str, str]]] = {
        "num_train_epochs": ("the stage's length is counted in rollout batches", "write max_steps"),
        "per_device_batch_size": (
            "a learner takes as many episodes at once as fit a packed row",
            "remove it; max_batch_tokens is the length of a row",
        ),
        "gradient_accumulation_steps": (
            "how many packed rows a learner takes one after another follows from prompts_per_step, "
            "group_size, mini_batches and the lengths of the episodes",
            "remove it; max_batch_tokens is the length of a row",
        ),
        "global_batch_size": (
            "the stage learns from prompts_per_step × group_size episodes a step",
            "write prompts_per_step",
        ),
        "logging_steps": ("every rollout batch has its row of metrics", "remove it"),
    }

    algorithm: AlgorithmConfig | None = Field(
        default=None, description="The objective that learns from rewards, if the stage does."
    )
    tasks: list[RlTask] = Field(min_length=1, description="What is learned, in fixed shares of every batch.")
    curation: str | None = Field(
        default=None,
        min_length=1,
        description="Curation recipe, by name or path, that the dataset of a task that it names goes through "
        "first. In its pass_rate steps without an endpoint the model that the stage starts from plays that "
        "task. The recipe's own `name` and `output_dir` do not count: the results are in the stage's folder.",
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
    @abstractmethod
    def episodes_per_prompt(self) -> int:
        """Episodes of each prompt."""

    @property
    @abstractmethod
    def updates_per_step(self) -> int:
        """Optimiser steps on each rollout batch, which is split into as many mini-batches."""

    @property
    def rewarded(self) -> set[str]:
        """Names of the tasks that have rewards."""
        return {task.name for task in self.tasks if task.rewards}

    @property
    def teacher_name(self) -> str | None:
        """The teacher: a checkpoint, an earlier stage, or base; None without one."""
        return None

    @property
    def teacher_key(self) -> str:
        """The key that names the teacher, if there is one."""
        return ""

    @property
    def teacher_top_k(self) -> int:
        """How many of its likeliest tokens a teacher in engines tells; 0 without one."""
        return 0

    @property
    def divergence_beta(self) -> float:
        """Kind of the divergence from a teacher, if there is one (see `DivergenceConfig`)."""
        return 0.0

    @property
    def reward_factor(self) -> float:
        """Factor of the loss that learns from rewards."""
        return 1.0

    @property
    def language_model_alone(self) -> bool:
        """Whether nothing of the vision side is trained."""
        return False

    @property
    def refill_rounds(self) -> int:
        """Most rounds of further prompts in a step, in place of those without signal."""
        return 0

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
        share = math.ceil(self.episodes_per_step // self.updates_per_step / self.num_workers)
        return replace(
            super().load(),
            accumulates=share * self.rollout.max_length > self.batch_tokens,
            reference=self.has_reference and self.lora is None,
        )

    @property
    def longest_response(self) -> int:
        """Most tokens that the policy can sample in an episode."""
        return max(
            min(
                task.max_turns * (task.max_new_tokens or self.rollout.max_new_tokens),
                task.max_length or self.rollout.max_length,
            )
            for task in self.tasks
        )

    @property
    def has_reference(self) -> bool:
        """Whether the policy is compared with the weights that the stage starts from."""
        return self.algorithm is not None and self.algorithm.kl is not None

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
        return _arithmetic(self)

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
        return self.prompts_per_step * self.episodes_per_prompt

    @model_validator(mode="after")
    def _check(self) -> "OnPolicyStage":
        ratios: dict[str, float] = {}
        for task in self.tasks:
            if task.name in ratios:
                raise MisfitError(
                    "tasks", f"two tasks are named {task.name!r}", "give one of them another name"
                )
            ratios[task.name] = task.ratio
        check_shares("tasks", ratios)
        check_lengths("tasks", self.tasks, self.rollout)
        parts = self.updates_per_step
        if self.prompts_per_step % parts:
            raise MisfitError(
                "prompts_per_step",
                f"{self.prompts_per_step} prompts cannot be split evenly into {parts} mini_batches",
                f"use {math.ceil(self.prompts_per_step / parts) * parts}, or another mini_batches",
            )
        if self.batch_tokens < self.rollout.max_length:
            raise MisfitError(
                "max_batch_tokens",
                f"an episode of up to rollout.max_length = {self.rollout.max_length} tokens has to fit a row",
                "raise it, or remove it",
            )
        if self.lora is not None:
            _check_adapters(self.lora, self.rollout)
        return self

    @model_validator(mode="after")
    def _check_rollout(self) -> "OnPolicyStage":
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


def _arithmetic(stage: OnPolicyStage) -> list[tuple[str, str]]:
    """Return the calculations of prompts, episodes and updates of a stage."""
    parts, episodes = stage.updates_per_step, stage.episodes_per_step
    part = episodes // parts
    share = math.ceil(part / stage.num_workers)
    prompts = ", ".join(f"{task.name} {task.ratio * stage.prompts_per_step:g}" for task in stage.tasks)
    updates = stage.max_steps * parts
    ahead, rounds = stage.rollout.max_staleness, stage.refill_rounds
    refilled = f"; refilling may take {rounds} times as many more" if rounds else ""
    return [
        ("prompts a step", prompts),
        ("episodes a step", f"{stage.prompts_per_step} prompts × {stage.episodes_per_prompt} = {episodes}"),
        (
            "episodes an update",
            f"{episodes} / {parts} mini-batches = {part}; {share} a learner process, "
            f"in rows of up to {stage.batch_tokens:,} tokens",
        ),
        ("updates", f"{stage.max_steps} steps × {parts} = {updates:,}"),
        ("episodes", f"{stage.max_steps} steps × {episodes} = {stage.max_steps * episodes:,}{refilled}"),
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


def _check_adapters(lora: LoraConfig, rollout: OnPolicyRolloutConfig) -> None:
    """Check that engines can compute what learners of adapters do."""
    if lora.dropout:
        raise MisfitError(
            "lora.dropout",
            "engines sample without dropout, and episodes are learned with the log-probs that they were "
            "sampled with",
            "remove it",
        )
    if lora.quantization == "int8":
        raise MisfitError(
            "lora.quantization",
            "int8 rounds what it multiplies as well as the weights, and engines do not: they would "
            "sample from another policy",
            "use nf4",
        )
    if lora.quantization is not None and rollout.publish == "adapter":
        raise MisfitError(
            "rollout.publish",
            "beside the weights as they were before they were quantised, adapters are another policy",
            "remove it: engines then get the quantised weights with the adapters merged into them",
        )
