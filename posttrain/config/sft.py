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


class SftData(DataConfig):
    """What supervised fine-tuning draws from, and how samples share a row."""

    packing: bool = Field(
        default=False,
        description="Put the samples of a step into rows of up to max_length tokens instead of padding them; "
        "they do not see each other, and the loss stays the same. per_device_batch_size is then the samples "
        "that a worker takes on average in a step.",
    )


class SftStage(TrainerStage):
    """Supervised fine-tuning: TRL's trainer on Ray Train."""

    stage: Literal["sft"] = Field(description="Kind of the stage.")
    name: Name = Field(default="sft", description="Name of the stage's folder and of its metrics.")
    data: SftData = Field(description="What is learned from.")
    loss: LossConfig = Field(default_factory=LossConfig, description="The loss.")

    @model_validator(mode="after")
    def _check(self) -> "SftStage":
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


def _next_multiple(value: int, of: int) -> int:
    return math.ceil(value / of) * of
