"""The quickstart's first stage, which makes a model."""

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Positive, PositiveFloat
from posttrain.config.stage import TrainingStage
from posttrain.types import Family


class TinyModelStage(TrainingStage):
    """Build a tiny, real Qwen-VL and teach its vision tower to see; only as a run's first stage."""

    runner: ClassVar[str] = "posttrain.quickstart.runner:TinyModelRunner"
    makes_model: ClassVar[bool] = True
    positions: ClassVar[int] = 4096  # max_position_embeddings of the models that it builds

    stage: Literal["tiny_model"] = Field(description="Kind of the stage.")
    name: Name = Field(default="tiny_model", description="Name of the stage's folder and of its metrics.")
    model_type: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"] = Field(
        default="qwen3_vl", description="Architecture, by transformers' name."
    )
    max_steps: Positive = Field(default=300, description="Optimiser steps.")
    global_batch_size: Positive = Field(default=64, description="Images a step, over all workers.")
    learning_rate: PositiveFloat = Field(default=4e-3, description="Peak rate of Muon.")
    num_workers: Positive = Field(default=2, description="Data-parallel processes.")
    save_steps: Positive = Field(default=100, description="Steps between checkpoints.")

    @property
    def family(self) -> Family:
        """The family that the tiny model belongs to."""
        return "qwen3_vl" if self.model_type == "qwen3_vl_moe" else self.model_type

    def arithmetic(self) -> list[tuple[str, str]]:
        """Return the number of images."""
        steps, size = self.max_steps, self.global_batch_size
        return [("images", f"{steps} steps × {size} = {steps * size:,}")]

    @model_validator(mode="after")
    def _check(self) -> "TinyModelStage":
        if self.global_batch_size % self.num_workers:
            raise MisfitError(
                "global_batch_size",
                f"{self.global_batch_size} images cannot be dealt evenly to {self.num_workers} workers",
                f"use {math.ceil(self.global_batch_size / self.num_workers) * self.num_workers}",
            )
        return self
