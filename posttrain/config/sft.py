"""The supervised stages: a tiny model's beginnings, and fine-tuning on dialogues."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, NaturalFloat, Positive, PositiveFloat, Section
from posttrain.config.data import DataConfig
from posttrain.types import Family

Scheduler = Literal["cosine", "linear", "constant"]


class TinyModelStage(Section):
    """Build a tiny, real Qwen3-VL and teach its vision tower to see; only as a run's first stage."""

    stage: Literal["tiny_model"] = Field(description="Kind of the stage.")
    name: Name = Field(default="tiny_model", description="Name of the stage's folder and of its metrics.")
    steps: Positive = Field(default=300, description="Optimiser steps.")
    batch_size: Positive = Field(default=64, description="Images a step, over all workers.")
    learning_rate: PositiveFloat = Field(default=4e-3, description="Peak rate of Muon.")
    num_workers: Positive = Field(default=2, description="Data-parallel processes.")
    logging_steps: Positive = Field(default=10, description="Steps between rows of metrics.")

    @property
    def family(self) -> Family:
        """The family that the tiny model belongs to."""
        return "qwen3_vl"

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


def _product(settled: dict[str, Any]) -> int:
    """Samples a step, from the fields validated before (a missing one is reported by itself)."""
    keys = ("per_device_batch_size", "gradient_accumulation_steps", "num_workers")
    return math.prod(settled.get(key, 1) for key in keys)


class SftStage(Section):
    """Supervised fine-tuning: TRL's trainer on Ray Train."""

    stage: Literal["sft"] = Field(description="Kind of the stage.")
    name: Name = Field(default="sft", description="Name of the stage's folder and of its metrics.")
    data: DataConfig = Field(description="What is learned from.")
    loss: LossConfig = Field(default_factory=LossConfig, description="The loss.")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="AdamW, or Muon for matrices with AdamW for the rest."
    )
    learning_rate: PositiveFloat = Field(default=1e-5, description="Peak learning rate.")
    lr_scheduler_type: Scheduler = Field(default="cosine", description="How the rate falls after warm-up.")
    warmup_ratio: NaturalFloat = Field(default=0.03, le=1, description="Share of the steps that warm up.")
    weight_decay: NaturalFloat = Field(default=0.0, description="Decoupled weight decay.")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="Norm to which gradients are clipped.")
    max_steps: Positive | None = Field(default=None, description="Optimiser steps in total.")
    num_train_epochs: PositiveFloat | None = Field(
        default=None, description="Passes over the data, in place of max_steps."
    )
    per_device_batch_size: Positive = Field(default=1, description="Samples a worker takes at once.")
    gradient_accumulation_steps: Positive = Field(default=1, description="Such batches before each step.")
    num_workers: Positive = Field(default=1, description="Data-parallel processes.")
    global_batch_size: Positive = Field(
        default_factory=_product,
        description="Samples a step: per_device_batch_size × gradient_accumulation_steps × num_workers. "
        "Computed if absent, checked if given.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations twice to hold fewer of them."
    )
    save_steps: Positive = Field(default=500, description="Steps between checkpoints.")
    logging_steps: Positive = Field(default=10, description="Steps between rows of metrics.")

    @model_validator(mode="after")
    def _check(self) -> "SftStage":
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise MisfitError(
                "max_steps",
                "the length is either max_steps or num_train_epochs",
                "write exactly one of the two",
            )
        sizes = (self.per_device_batch_size, self.gradient_accumulation_steps, self.num_workers)
        if self.global_batch_size != math.prod(sizes):
            raise MisfitError(
                "global_batch_size",
                "{} × {} × {}".format(*sizes)
                + f" (per_device_batch_size × gradient_accumulation_steps × num_workers) "
                f"is {math.prod(sizes)}, not {self.global_batch_size}",
                f"write {math.prod(sizes)}, or leave it out",
            )
        return self

    def steps_for(self, rows: int) -> int:
        """Optimiser steps of the whole stage, given the number of rows of one epoch."""
        epochs = math.ceil((self.num_train_epochs or 0) * rows / self.global_batch_size)
        return self.max_steps or epochs


def _next_multiple(value: int, of: int) -> int:
    return math.ceil(value / of) * of
