"""The supervised stages: a tiny model's beginnings, and fine-tuning on dialogues."""

import math
from typing import Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Positive, PositiveFloat, Section
from posttrain.config.data import DataConfig
from posttrain.config.trainer import TrainerStage
from posttrain.types import Family


class TinyModelStage(Section):
    """Build a tiny, real Qwen-VL and teach its vision tower to see; only as a run's first stage."""

    stage: Literal["tiny_model"] = Field(description="Kind of the stage.")
    name: Name = Field(default="tiny_model", description="Name of the stage's folder and of its metrics.")
    model_type: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"] = Field(
        default="qwen3_vl", description="Architecture, by transformers' name."
    )
    steps: Positive = Field(default=300, description="Optimiser steps.")
    batch_size: Positive = Field(default=64, description="Images a step, over all workers.")
    learning_rate: PositiveFloat = Field(default=4e-3, description="Peak rate of Muon.")
    num_workers: Positive = Field(default=2, description="Data-parallel processes.")
    max_skipped_updates: Positive = Field(
        default=5,
        description="Updates in a row whose loss or gradient is not finite before the stage ends; the others "
        "are skipped and counted.",
    )
    save_steps: Positive = Field(default=100, description="Steps between checkpoints.")
    logging_steps: Positive = Field(default=10, description="Steps between rows of metrics.")

    @property
    def family(self) -> Family:
        """The family that the tiny model belongs to."""
        return "qwen3_vl" if self.model_type == "qwen3_vl_moe" else self.model_type

    @model_validator(mode="after")
    def _check(self) -> "TinyModelStage":
        if self.batch_size % self.num_workers:
            raise MisfitError(
                "batch_size",
                f"{self.batch_size} images cannot be dealt evenly to {self.num_workers} workers",
                f"use {_next_multiple(self.batch_size, self.num_workers)}",
            )
        return self


class LossConfig(Section):
    """How the tokens' losses become one number."""

    normalization: Literal["sqrt", "token", "sample"] = Field(
        default="sqrt",
        description="Weight of a sample with T supervised tokens in the mean: √T, T, or the same for all.",
    )


class LengthCurriculum(Section):
    """Two phases: short samples alone, then long ones that alternate with short ones."""

    short_length: Positive = Field(
        default=32768, description="Most tokens of a short sample; every other one up to max_length is long."
    )
    short_phase: float = Field(
        default=0.5, ge=0, lt=1, description="Share of the steps in which only short samples come."
    )
    long_share: float = Field(
        default=0.5, gt=0, le=1, description="Share of long samples in every stretch of the second phase."
    )


class SftData(DataConfig):
    """What supervised fine-tuning draws from, and how samples share a row."""

    packing: bool = Field(
        default=False,
        description="Put the samples of a step into rows of up to max_length tokens instead of padding them; "
        "they do not see each other, and the loss stays the same. per_device_batch_size is then the samples "
        "that a worker takes on average in a step.",
    )
    curriculum: LengthCurriculum | None = Field(
        default=None,
        description="Order by length, for which every sample's tokens are counted once; packed rows of the "
        "first phase hold up to short_length tokens. Samples of all lengths are mixed if absent.",
    )

    @model_validator(mode="after")
    def _check_curriculum(self) -> "SftData":
        if self.curriculum is not None and self.curriculum.short_length >= self.max_length:
            raise MisfitError(
                "curriculum.short_length",
                f"no sample is longer than {self.curriculum.short_length} and fits max_length ="
                f" {self.max_length}",
                "raise max_length, or lower it",
            )
        return self


class SupervisedStage(TrainerStage):
    """What the stages share that learn from dialogues: TRL's SFTTrainer and how it is fed."""

    data: SftData = Field(description="What is learned from.")

    def long_samples_from(self, rows: int) -> int:
        """The first draw of the curriculum's second phase, given the rows of one epoch: that of a step."""
        assert self.data.curriculum is not None
        return round(self.data.curriculum.short_phase * self.steps_for(rows)) * self.global_batch_size

    @model_validator(mode="after")
    def _check_length_and_packing(self) -> "SupervisedStage":
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise MisfitError(
                "max_steps",
                "the length is either max_steps or num_train_epochs",
                "write exactly one of the two",
            )
        if self.data.packing and self.gradient_accumulation_steps > 1:
            raise MisfitError(
                "gradient_accumulation_steps",
                "packing decides from the samples' lengths how many rows a worker takes one after another",
                f"leave it out, and write per_device_batch_size: "
                f"{self.per_device_batch_size * self.gradient_accumulation_steps}",
            )
        return self


class SftStage(SupervisedStage):
    """Supervised fine-tuning: TRL's trainer on Ray Train."""

    stage: Literal["sft"] = Field(description="Kind of the stage.")
    name: Name = Field(default="sft", description="Name of the stage's folder and of its metrics.")
    loss: LossConfig = Field(default_factory=LossConfig, description="The loss.")
    curation: str | None = Field(
        default=None,
        min_length=1,
        description="Curation recipe, by name or path, that the dataset of the mixture that it names goes "
        "through first. Its own `name` and `output_dir` do not count: the results are in the stage's folder.",
    )
    eval_epochs: PositiveFloat | None = Field(
        default=None,
        description="Passes over the data between evaluations by generation, on the tasks that the stage is "
        "measured on anyway; only at its end if absent.",
    )

    def evaluation_steps(self, rows: int) -> list[int]:
        """Steps after which checkpoints are measured on the way, given the rows of one epoch."""
        if self.eval_epochs is None:
            return []
        every = max(1, round(self.eval_epochs * rows / self.global_batch_size))
        return list(range(every, self.steps_for(rows), every))


def _next_multiple(value: int, of: int) -> int:
    return math.ceil(value / of) * of
