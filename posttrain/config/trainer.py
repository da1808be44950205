"""What the stages that run one of TRL's trainers have in common: optimiser, batch and length."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, NaturalFloat, Positive, PositiveFloat, Section
from posttrain.config.lora import LoraConfig

Scheduler = Literal["cosine", "linear", "constant"]


def _product(settled: dict[str, Any]) -> int:
    """Samples a step, from the fields validated before (a missing one is reported by itself)."""
    keys = ("per_device_batch_size", "gradient_accumulation_steps", "num_workers")
    return math.prod(settled.get(key, 1) for key in keys)


class TrainedStage(Section):
    """What every stage has that goes on from a checkpoint."""

    start_from: Name | None = Field(
        default=None,
        description="Earlier stage whose final checkpoint this one starts from, or base, which is the run's "
        "model. The stage before if absent.",
    )
    metric: Name | None = Field(
        default=None,
        description="Evaluation task that the stage is meant to get better at, or of a dpo stage its "
        "eval_dataset: the report shows it before and after.",
    )
    max_skipped_updates: Positive = Field(
        default=5,
        description="Updates in a row whose loss or gradient is not finite before the stage ends; the others "
        "are skipped and counted.",
    )


class TrainerStage(TrainedStage):
    """The settings of a trainer's loop."""

    lora: LoraConfig | None = Field(
        default=None, description="Train low-rank adapters and keep all other weights fixed; off if absent."
    )
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
    sharding: Literal["none", "fsdp2"] = Field(
        default="none",
        description="What a worker holds: the whole model, or a part of weights, gradients and optimiser "
        "(fsdp2, through accelerate: on GPUs, with adamw). Checkpoints are whole models either way.",
    )
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
    def _check_batch(self) -> "TrainerStage":
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

    @model_validator(mode="after")
    def _check_sharding(self) -> "TrainerStage":
        if self.sharding == "none":
            return self
        if self.num_workers == 1:
            raise MisfitError("sharding", "one worker shares nothing", "raise num_workers, or remove it")
        if self.optimizer == "muon":
            raise MisfitError("sharding", "muon needs whole matrices", "set optimizer: adamw, or remove it")
        if self.lora is not None and self.lora.quantization is not None:
            raise MisfitError(
                "sharding", "weights held by bitsandbytes are not split", "remove it, or lora.quantization"
            )
        return self

    def steps_for(self, rows: int) -> int:
        """Optimiser steps of the whole stage, given the number of rows of one epoch."""
        epochs = self.num_train_epochs or 1
        return self.max_steps or math.ceil(epochs * rows / self.global_batch_size)
