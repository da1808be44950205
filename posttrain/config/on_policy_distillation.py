"""On-policy distillation: the student answers, and learns a teacher's distribution on its own tokens."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, NaturalFloat, Positive, Section
from posttrain.config.memory import LearnerLoad
from posttrain.config.model import check_directory, infer_family
from posttrain.config.on_policy import OnPolicyStage
from posttrain.config.paths import ModelPath
from posttrain.config.rollout import EngineConfig, RolloutConfig
from posttrain.config.shapes import named_shape
from posttrain.config.stage import CheckpointUse, Content, ReadingEngines, Surroundings, TaskUse
from posttrain.config.tasks import DistillationTask

#: Likeliest tokens of a teacher in engines that are learned, if a stage does not say how many.
TOP_K = 64


class OnPolicyTeacher(Section):
    """Whose distribution is learned: exactly one of two.

    The teacher reads what the student read and wrote, with every image of every turn. A teacher that thinks
    where the student does not says so by its first token.
    """

    checkpoint: ModelPath | None = Field(
        default=None,
        min_length=1,
        description="Hugging Face id or local directory of the teacher, with the student's tokens.",
    )
    stage: Name | None = Field(
        default=None,
        description="Name of an earlier stage of the run, whose final checkpoint is the teacher; or base.",
    )
    place: Literal["learners", "engines"] = Field(
        default="learners",
        description="Where the teacher is. In the `learners` it is frozen beside the student, and tells its "
        "distribution over the whole vocabulary as an episode is learned. In `engines` of its own it reads "
        "every episode as soon as its group is over, while others are still played, and tells its top_k "
        "likeliest tokens: for a teacher that is larger than the student, on GPUs of its own.",
    )
    actors: Positive = Field(default=1, description="Number of the teacher's engines.")
    engine: EngineConfig = Field(
        default_factory=EngineConfig, description="Settings of each of the teacher's engines."
    )

    @model_validator(mode="after")
    def _check_place(self) -> "OnPolicyTeacher":
        for key in ("actors", "engine"):
            if self.place == "learners" and key in self.model_fields_set:
                raise MisfitError(key, "the teacher is in the learners", "remove it, or set place: engines")
        return self

    @model_validator(mode="after")
    def _check(self) -> "OnPolicyTeacher":
        if (self.checkpoint is None) == (self.stage is None):
            found = "there is none" if self.stage is None else "these are checkpoint and stage"
            raise MisfitError(
                "checkpoint", f"a stage has one teacher, and {found}", "write checkpoint or stage"
            )
        path = self.checkpoint
        check_directory("checkpoint", path)
        if path and infer_family(path) is None:
            raise MisfitError(
                "checkpoint",
                f"{path!r} does not tell its family",
                "use a checkpoint of Qwen2-VL, Qwen2.5-VL or Qwen3-VL, or of a language model with the "
                "student's tokens",
            )
        return self


class DivergenceConfig(Section):
    """The loss: how far the student's distribution is from its teacher's."""

    beta: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Kind of the divergence: 0 is the forward Kullback-Leibler divergence, which covers all "
        "that the teacher may say; 1 the reverse one, which settles on what it is likeliest to say; between "
        "them is the generalised Jensen-Shannon divergence.",
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="With a teacher in engines: how many of its likeliest tokens, beside the sampled one, "
        f"are told apart at a place; all others count as one. {TOP_K} if absent. In the learners it tells "
        "all.",
    )


class OnPolicyDistillationStage(OnPolicyStage):
    """On-policy distillation: a teacher's distribution is learned at every token that the student samples."""

    stage: Literal["on_policy_distillation"] = Field(description="Kind of the stage.")
    name: Name = Field(
        default="on_policy_distillation", description="Name of the stage's folder and of its metrics."
    )
    teacher: OnPolicyTeacher = Field(description="Whose distribution is learned.")
    loss: DivergenceConfig = Field(default_factory=DivergenceConfig, description="The loss.")
    tasks: list[DistillationTask] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        min_length=1, description="What the student answers, in fixed shares of every batch."
    )
    group_size: Positive = Field(
        default=4, description="Episodes of each prompt; with an `algorithm` its group_size counts."
    )
    mini_batches: Positive = Field(
        default=1, description="Optimiser steps on each rollout batch; with an `algorithm` its mini_batches."
    )
    reward_weight: NaturalFloat = Field(
        default=0.0,
        description="Factor of the loss that learns from the tasks' rewards, by `algorithm`, beside the "
        "divergence. At 0 rewards are measured and not learned from.",
    )
    text_only: bool = Field(
        default=False,
        description="Train the language model alone on prompts without images: vision tower and merger stay "
        "fixed, and a prompt with an image is an error.",
    )

    @property
    def episodes_per_prompt(self) -> int:
        """Episodes of each prompt."""
        return self.group_size if self.algorithm is None else self.algorithm.group_size

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps on each rollout batch."""
        return self.mini_batches if self.algorithm is None else self.algorithm.mini_batches

    @property
    def teacher_name(self) -> str | None:
        """The teacher: a checkpoint, an earlier stage, or base."""
        return self.teacher.checkpoint or self.teacher.stage

    @property
    def divergence_beta(self) -> float:
        """Kind of the divergence from the teacher."""
        return self.loss.beta

    @property
    def teacher_key(self) -> str:
        """The key that names the teacher."""
        return "teacher.stage" if self.teacher.checkpoint is None else "teacher.checkpoint"

    @property
    def teacher_top_k(self) -> int:
        """How many of its likeliest tokens a teacher in engines tells; 0 of one in the learners."""
        return (self.loss.top_k or TOP_K) if self.teacher.place == "engines" else 0

    @property
    def reading_engines(self) -> ReadingEngines | None:
        """The engines of a teacher that has its own."""
        if not self.teacher_top_k:
            return None
        settings = {"max_length": self.rollout.max_length, "max_new_tokens": 1}
        rollout = RolloutConfig(actors=self.teacher.actors, engine=self.teacher.engine, **settings)
        return ReadingEngines(("teacher",), rollout, self.teacher.checkpoint, self.episodes_per_prompt)

    @property
    def reward_factor(self) -> float:
        """Factor of the loss that learns from rewards."""
        return self.reward_weight

    @property
    def language_model_alone(self) -> bool:
        """Whether nothing of the vision side is trained."""
        return self.text_only

    @property
    def teacher_is_base_of_adapters(self) -> bool:
        """Whether the teacher is what the stage starts from, so that adapters need no copy of it."""
        start = self.start_from
        return self.lora is not None and start is not None and self.teacher.stage == start

    def load(self) -> LearnerLoad:
        """Return what a learner holds: the teacher as well, and no images where the stage is text_only."""
        load = replace(super().load(), sees_images=not self.text_only)
        if self.teacher_top_k:
            return load
        if self.teacher.checkpoint is not None:
            return replace(load, teacher=named_shape(self.teacher.checkpoint), teaches=True)
        return replace(load, reference=not self.teacher_is_base_of_adapters, teaches=True)

    def tasks_played(self) -> list[TaskUse]:
        """List the tasks that are learned; text_only ones show nothing."""
        refused: Mapping[Content, str] = {}
        if self.text_only:
            why = (
                "the stage is text_only; filter the dataset by `{{column: {}, max_length: 0}}`, or set"
                " text_only: false"
            )
            refused = {"images": why.format("images"), "videos": why.format("videos")}
        return [replace(use, refused=refused) for use in super().tasks_played()]

    def checkpoints(self) -> list[CheckpointUse]:
        """Return the teacher, where it is named by a checkpoint."""
        name = self.teacher.checkpoint
        if name is None:
            return []
        length = ("rollout", "max_length"), self.rollout.max_length
        return [CheckpointUse(("teacher", "checkpoint"), "teacher", name, *length, same_tokens=True)]

    def arithmetic(self) -> list[tuple[str, str]]:
        """Return the calculations of prompts, episodes and updates, and what the teacher reads."""
        episodes = self.max_steps * self.episodes_per_step
        most = episodes * self.rollout.max_length
        kind = {0.0: "forward", 1.0: "reverse"}.get(self.loss.beta, "Jensen-Shannon")
        told = (
            f"{self.teacher_name} reads {episodes:,} episodes of up to {self.rollout.max_length:,} tokens, at"
            f" most {most:,} in all; {kind} divergence (beta = {self.loss.beta:g})"
        )
        if self.teacher_top_k:
            told += f" over its top {self.teacher_top_k}; engines of its own: {self.teacher.actors}"
        return [*super().arithmetic(), ("teacher", told)]

    def check_in_run(self, around: Surroundings) -> None:
        """Check also that the teacher is there."""
        known = [*around.earlier, *["base"] * around.has_base]
        if self.teacher.stage is not None and self.teacher.stage not in known:
            raise MisfitError(
                "teacher.stage",
                f"there is no {self.teacher.stage!r} before this stage",
                f"choose among {', '.join(known)}, or name a checkpoint" if known else "name a checkpoint",
            )
        super().check_in_run(around)

    @model_validator(mode="after")
    def _check_distribution(self) -> "OnPolicyDistillationStage":
        if self.rollout.temperature != 1:
            raise MisfitError(
                "rollout.temperature",
                "the student is compared with its teacher at temperature 1, and is to sample from the same",
                "remove it",
            )
        if self.algorithm is not None and self.algorithm.kl is not None:
            raise MisfitError(
                "algorithm.kl", "the divergence from the teacher holds the policy already", "remove it"
            )
        return self

    @model_validator(mode="after")
    def _check_top_k(self) -> "OnPolicyDistillationStage":
        if self.loss.top_k is not None and not self.teacher_top_k:
            raise MisfitError(
                "loss.top_k",
                "a teacher in the learners tells its distribution over the whole vocabulary",
                "remove it, or set teacher.place: engines",
            )
        return self

    @model_validator(mode="after")
    def _check_rewards(self) -> "OnPolicyDistillationStage":
        if self.algorithm is None:
            if self.reward_weight:
                raise MisfitError(
                    "reward_weight",
                    "no objective says how rewards are learned from",
                    "add `algorithm: {name: sapo, group_size: 8, mini_batches: 1}`, or remove it",
                )
            return self
        if not self.reward_weight:
            raise MisfitError(
                "algorithm",
                "at reward_weight 0 nothing is learned from rewards",
                "set reward_weight, or remove it",
            )
        for key in ("group_size", "mini_batches"):
            if key in self.model_fields_set:
                raise MisfitError(key, f"algorithm.{key} says it", "remove one of them")
        for number, task in enumerate(self.tasks):
            if not task.rewards:
                raise MisfitError(
                    f"tasks[{number}].rewards", "reward_weight is set, and there is none", "name a reward"
                )
        return self
