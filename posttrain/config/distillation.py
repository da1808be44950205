"""Off-policy distillation: a teacher answers prompts once, and the student learns from its answers."""

import math
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, NaturalFloat, Positive, Section
from posttrain.config.data import Use
from posttrain.config.endpoints import EndpointConfig
from posttrain.config.memory import LearnerLoad
from posttrain.config.model import check_directory, infer_family
from posttrain.config.paths import ModelPath
from posttrain.config.rollout import EngineConfig, RolloutConfig
from posttrain.config.sft import LossConfig, Normalization, SupervisedStage
from posttrain.config.stage import (
    CheckpointUse,
    Content,
    DatasetUse,
    EndpointUse,
    Surroundings,
    too_few_gpus,
)


class TeacherConfig(Section):
    """Who answers: exactly one of three."""

    checkpoint: ModelPath | None = Field(
        default=None, min_length=1, description="Hugging Face id or local directory of the teacher."
    )
    stage: Name | None = Field(
        default=None,
        description="Name of an earlier stage of the run, whose final checkpoint is the teacher.",
    )
    endpoint: EndpointConfig | None = Field(
        default=None, description="A teacher behind an OpenAI-compatible endpoint."
    )

    @model_validator(mode="after")
    def _check(self) -> "TeacherConfig":
        named = [key for key in ("checkpoint", "stage", "endpoint") if getattr(self, key) is not None]
        if len(named) != 1:
            found = f"these are {' and '.join(named)}" if named else "there is none"
            raise MisfitError(
                named[-1] if named else "checkpoint",
                f"a stage has one teacher, and {found}",
                "write exactly one of checkpoint, stage and endpoint",
            )
        check_directory("checkpoint", self.checkpoint)
        return self


class TeacherGeneration(Section):
    """How the teacher's answers are sampled."""

    samples_per_prompt: Positive = Field(default=1, description="Answers to each prompt; each is a sample.")
    temperature: NaturalFloat = Field(default=1.0, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Share of the probability that tokens are sampled from."
    )
    max_new_tokens: Positive = Field(
        default=1024, description="Longest answer, in tokens; one that is cut off there is left out."
    )
    actors: Positive = Field(default=1, description="Number of engines that serve the teacher.")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="Settings of each engine.")

    @model_validator(mode="after")
    def _check(self) -> "TeacherGeneration":
        if self.samples_per_prompt > 1 and self.temperature == 0:
            raise MisfitError(
                "samples_per_prompt",
                "at temperature 0 every answer is the same",
                "set it to 1, or raise the temperature",
            )
        return self


class DistillationLoss(LossConfig):
    """The loss: how likely the teacher's tokens are, how close the distributions are, or both."""

    top_k: int = Field(
        default=0,
        ge=0,
        le=20,
        description="Likeliest tokens of the teacher that are stored with each token of an answer; 0 learns "
        "from the answers alone.",
    )
    top_k_weight: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the forward Kullback-Leibler divergence to the teacher, over its top_k tokens "
        "and the rest as one, in each token's loss; the rest is the negative log-likelihood.",
    )

    @model_validator(mode="after")
    def _check(self) -> "DistillationLoss":
        if not self.top_k and "top_k_weight" in self.model_fields_set:
            raise MisfitError(
                "top_k_weight", "without top_k there is no divergence", "set top_k, or remove it"
            )
        return self


class DistillationStage(SupervisedStage):
    """Off-policy distillation: the answers are made once, kept in the run, and then learned from.

    Rows of the datasets are prompts: what follows the last user or tool turn is dropped.
    """

    runner: ClassVar[str] = "posttrain.training.supervised.runners:DistillationRunner"
    use: ClassVar[Use] = "prompts"

    stage: Literal["distillation"] = Field(description="Kind of the stage.")
    name: Name = Field(default="distillation", description="Name of the stage's folder and of its metrics.")
    teacher: TeacherConfig = Field(description="Who answers the prompts.")
    generation: TeacherGeneration = Field(
        default_factory=TeacherGeneration, description="How the answers are sampled."
    )
    num_prompts: Positive | None = Field(
        default=None,
        description="Prompts that are answered, in the shares of the mixture, each once; all rows if absent.",
    )
    loss: DistillationLoss = Field(default_factory=DistillationLoss, description="The loss.")
    text_only: bool = Field(
        default=False,
        description="Train the language model alone on prompts without images: vision tower and merger stay "
        "fixed, and a prompt with an image is an error.",
    )

    @property
    def normalization(self) -> Normalization:
        """How the losses of a sample's tokens are weighted."""
        return self.loss.normalization

    def load(self) -> LearnerLoad:
        """Return what a worker holds, without images where it is text_only."""
        return replace(super().load(), sees_images=not self.text_only)

    @property
    def teacher_engines(self) -> RolloutConfig:
        """How a teacher that is a checkpoint is served."""
        settings = self.generation
        return RolloutConfig(
            actors=settings.actors,
            max_new_tokens=settings.max_new_tokens,
            max_length=self.data.max_length,
            engine=settings.engine,
        )

    def datasets(self) -> list[DatasetUse]:
        """List the prompts of the mixture."""
        refused: dict[Content, str] = {}
        if self.text_only:
            refused["images"] = (
                "the stage is text_only; filter the dataset by `{column: images, max_length: 0}`, or set "
                "text_only: false"
            )
            refused["videos"] = refused["images"].replace("images", "videos")
        if self.teacher.endpoint is not None:
            refused["tools"] = (
                "an endpoint is not told of them; filter the dataset, or let a checkpoint or a stage teach"
            )
            refused.setdefault(
                "videos",
                "an endpoint is shown texts and images; filter the dataset by"
                " `{column: videos, max_length: 0}`, or let a checkpoint or a stage teach",
            )
        return [
            DatasetUse(
                ("data", "mixture", name),
                name,
                "prompts",
                refused,
                taken=math.floor((self.num_prompts or 0) * share),
                taken_by=f"num_prompts = {self.num_prompts}",
            )
            for name, share in self.data.mixture.items()
        ]

    def checkpoints(self) -> list[CheckpointUse]:
        """Return the teacher, where it is named by a checkpoint."""
        name = self.teacher.checkpoint
        if name is None:
            return []
        length = ("data", "max_length"), self.data.max_length
        return [CheckpointUse(("teacher", "checkpoint"), "teacher", name, *length)]

    def endpoints(self) -> list[EndpointUse]:
        """Return the teacher, where it is behind an address."""
        endpoint = self.teacher.endpoint
        return [] if endpoint is None else [EndpointUse(("teacher", "endpoint"), endpoint)]

    def arithmetic(self) -> list[tuple[str, str]]:
        """Return the sums of batches, and who answers how many prompts."""
        teacher, samples = self.teacher, self.generation.samples_per_prompt
        name = teacher.checkpoint or teacher.stage or (teacher.endpoint and teacher.endpoint.model)
        if self.num_prompts is None:
            answers = f"every prompt × {samples}, by {name}"
        else:
            answers = f"{self.num_prompts} prompts × {samples} = {self.num_prompts * samples:,}, by {name}"
        return [*super().arithmetic(), ("answers", answers)]

    def check_in_run(self, around: Surroundings) -> None:
        """Check also that the teacher is there, and the GPUs of its engines."""
        if self.teacher.stage not in (None, *around.earlier):
            raise MisfitError(
                "teacher.stage",
                f"there is no stage {self.teacher.stage!r} before this one",
                f"name an earlier stage ({', '.join(sorted(around.earlier)) or 'there is none'}), or a "
                "checkpoint",
            )
        # A teacher's engines are gone before the student trains.
        actors, each = self.generation.actors, self.generation.engine.tensor_parallel_size
        if around.gpus and actors * each > around.gpus:
            raise MisfitError("generation.actors", *too_few_gpus(f"{actors}", around.gpus, each))
        super().check_in_run(around)

    @model_validator(mode="after")
    def _check_teacher(self) -> "DistillationStage":
        if self.generation.max_new_tokens >= self.data.max_length:
            raise MisfitError(
                "generation.max_new_tokens",
                f"an answer of {self.generation.max_new_tokens} tokens leaves no room for a prompt in "
                f"data.max_length = {self.data.max_length}",
                "lower it, or raise data.max_length",
            )
        if self.teacher.checkpoint is not None and infer_family(self.teacher.checkpoint) is None:
            raise MisfitError(
                "teacher.checkpoint",
                f"{self.teacher.checkpoint!r} does not tell its family",
                "use a checkpoint of Qwen2-VL, Qwen2.5-VL or Qwen3-VL, or serve it behind an endpoint",
            )
        if self.teacher.endpoint is None:
            return self
        if self.loss.top_k:
            raise MisfitError(
                "loss.top_k",
                "an endpoint's tokens are not the student's, so their log-probs cannot be learned from",
                "remove it, or let a checkpoint or a stage teach",
            )
        for key in ("actors", "engine"):
            if key in self.generation.model_fields_set:
                raise MisfitError(f"generation.{key}", "an endpoint has its own engines", "remove it")
        if self.generation.top_p < 1 and "top_p" in self.teacher.endpoint.request:
            raise MisfitError(
                "generation.top_p", "teacher.endpoint.request has another", "remove one of them"
            )
        return self
