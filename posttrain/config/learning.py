"""The settings of everything that learns: one vocabulary for SFT, distillation, DPO and RL."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Natural, NaturalFloat, Positive, PositiveFloat, Section
from posttrain.config.data import Use
from posttrain.config.lora import LoraConfig
from posttrain.config.memory import LearnerLoad
from posttrain.config.packages import PackageUse
from posttrain.config.stage import Surroundings, TrainingStage

Scheduler = Literal["cosine", "linear", "constant"]
OptimizerName = Literal["adamw", "adamw_8bit", "adamw_bf16", "muon"]
#: Bytes of a trained parameter by optimiser: its weight, its gradient, and the optimiser's states.
BYTES_HELD: dict[OptimizerName, tuple[float, float, float]] = {
    "adamw": (4, 4, 8),
    "adamw_8bit": (4, 4, 2 + 8 / 256),  # with two scales for 256 parameters
    "adamw_bf16": (2, 4, 8),  # gradients of micro-batches are added up in float32; of a single one it is 2
    "muon": (4, 4, 4),
}


def _product(settled: dict[str, Any]) -> int:
    """Multiply the sizes of a batch; one that is missing or wrong has an error of its own."""
    keys = ("per_device_batch_size", "gradient_accumulation_steps", "num_workers")
    return math.prod(settled.get(key, 1) for key in keys)


class Cell(Section):
    """What tells a stage from those that it is compared with."""

    comparison: Name = Field(description="Name of the stage whose `vary` made it.")
    settings: dict[str, object] = Field(description="Value of each setting that is varied, by its key.")


class LearningStage(TrainingStage, ABC):
    """A stage that starts from a checkpoint and trains its weights."""

    #: Keys of this section that a kind of stage cannot obey: key → (reason, remedy).
    unsupported: ClassVar[dict[str, tuple[str, str]]] = {}

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
    seed: Natural | None = Field(
        default=None,
        description="Seed of everything random in the stage: order of samples, prompts, answers, new "
        "adapters. The run's if absent.",
    )
    vary: dict[str, object] = Field(
        default_factory=dict,
        description="Settings to compare: keys of the stage, nested as it has them, each with a list of "
        "values, such as {seed: [0, 1, 2], algorithm: {name: [sapo, grpo]}}. In place of the stage come its "
        "cells, a stage for each combination, all from the same checkpoint; the last key changes fastest. "
        "`variants: [{name: …, …}, …]` lists sets of keys, tasks and start_from among them. "
        "`posttrain view` compares them on a page.",
    )
    cell: Cell | None = Field(
        default=None, description="Which cell of a comparison the stage is; written in place of vary."
    )
    lora: LoraConfig | None = Field(
        default=None, description="Train low-rank adapters and keep all other weights fixed; off if absent."
    )
    optimizer: OptimizerName = Field(
        default="adamw",
        description="AdamW over float32 weights, which takes 16 bytes a parameter; adamw_8bit, whose moments "
        "have 8 bits (10 bytes; by bitsandbytes); adamw_bf16, which holds the weights of a bfloat16 model in "
        "bfloat16 and rounds every update at random (12 to 14 bytes); or Muon for matrices with AdamW for "
        "the rest.",
    )
    learning_rate: PositiveFloat = Field(default=1e-5, description="Peak learning rate.")
    lr_scheduler_type: Scheduler = Field(default="cosine", description="How the rate falls after warm-up.")
    warmup_ratio: NaturalFloat = Field(
        default=0.03, le=1, description="Share of the steps during which the rate rises."
    )
    weight_decay: NaturalFloat = Field(default=0.0, description="Decoupled weight decay.")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="Norm to which gradients are clipped.")
    max_steps: Positive | None = Field(default=None, description="Optimiser steps in total.")
    num_train_epochs: PositiveFloat | None = Field(
        default=None, description="Passes over the data, in place of max_steps."
    )
    per_device_batch_size: Positive = Field(default=1, description="Samples that a worker takes at once.")
    gradient_accumulation_steps: Positive = Field(default=1, description="Such batches before each step.")
    global_batch_size: Positive = Field(
        default_factory=_product,
        description="Samples a step: per_device_batch_size × gradient_accumulation_steps × num_workers. "
        "Computed if absent, checked if given.",
    )
    sharding: Literal["none", "fsdp2"] = Field(
        default="none",
        description="What a worker holds: the whole model, or a part of weights, gradients and optimiser "
        "(fsdp2, with adamw). Checkpoints are whole models either way.",
    )
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="Compute activations twice to hold fewer of them: on GPUs if absent, and not on a CPU.",
    )
    offload_activations: bool = Field(
        default=False,
        description="With gradient_checkpointing, keep what remains of the activations in the host's memory: "
        "for very long rows, at the price of copying a layer's inputs there and back.",
    )

    def on(self, use_gpu: bool) -> Self:
        """Return the stage with `gradient_checkpointing` set."""
        if self.gradient_checkpointing is not None:
            return self
        return self.model_copy(update={"gradient_checkpointing": use_gpu})

    def origin(self, before: str) -> str | None:
        """Return `start_from`, or the stage before."""
        return self.start_from or before

    @property
    def shared_name(self) -> str:
        """Name that random numbers depend on, and tables call it by; cells of a comparison share theirs."""
        return self.name if self.cell is None else self.cell.comparison

    def warmup_steps(self, steps: int) -> int:
        """Return the number of steps during which the learning rate rises, given the number of all steps."""
        return round(self.warmup_ratio * steps)

    def packages(self) -> list[PackageUse]:
        """Return bitsandbytes if the fixed weights, or the optimiser's moments, are quantized."""
        weights = PackageUse(("lora", "quantization"), "bitsandbytes", "qlora")
        moments = PackageUse(("optimizer",), "bitsandbytes", "adamw-8bit")
        quantized = self.lora is not None and self.lora.quantization is not None
        return [weights] * quantized + [moments] * (self.optimizer == "adamw_8bit")

    @property
    def float32_masters(self) -> bool:
        """Whether trained weights are held in float32, whatever type the model computes in."""
        return self.optimizer != "adamw_bf16"

    @property
    @abstractmethod
    def batch_tokens(self) -> int:
        """Most tokens of what a worker takes at once, padding included."""

    def load(self) -> LearnerLoad:
        """Return what the process of a worker holds and computes."""
        return LearnerLoad(
            tokens=self.batch_tokens,
            accumulates=self.gradient_accumulation_steps > 1,
            shards=self.num_workers if self.sharding != "none" else 1,
            held=BYTES_HELD[self.optimizer],
            checkpointing=bool(self.gradient_checkpointing),
            offloading=self.offload_activations,
            lora=self.lora,
        )

    def measured_by_itself(self) -> frozenset[str]:
        """Return what the stage itself measures, which `metric` may name like an evaluation task."""
        return frozenset()

    def check_in_run(self, around: Surroundings) -> None:
        """Check where the stage starts, the GPUs that it takes, and that its metric is measured."""
        self._check_start(around)
        if self.offload_activations and around.gpus == 0:
            raise MisfitError(
                "offload_activations", "a CPU's activations are in the host's memory", "remove it"
            )
        if not self.float32_masters and around.dtype == "float32":
            raise MisfitError(
                "optimizer",
                f"{self.optimizer} holds weights as a bfloat16 model does, and model.dtype is float32",
                "set optimizer: adamw, or model.dtype: bfloat16",
            )
        super().check_in_run(around)
        if self.metric is None or self.metric in self.measured_by_itself():
            return
        measured = around.measured_before & around.measured_after
        if self.metric not in measured:
            both = ", ".join(sorted(measured)) or "no task"
            raise MisfitError(
                "metric",
                f"{self.metric!r} is not measured both before and after the stage ({both} is)",
                "name a task of `evaluation`, and both stages in its `stages`",
            )

    def _check_start(self, around: Surroundings) -> None:
        known = [*sorted(around.earlier), *["base"] * around.has_base]
        if self.start_from is not None and self.start_from not in known:
            raise MisfitError(
                "start_from",
                f"there is no {self.start_from!r} before this stage",
                f"choose among {', '.join(known)}" if known else "remove it",
            )

    @model_validator(mode="after")
    def _check_supported(self) -> "LearningStage":
        """Refuse a key that has no effect in this kind of stage, unless its value is the default."""
        for key, (reason, remedy) in self.unsupported.items():
            default = (
                type(self).model_fields[key].get_default(call_default_factory=True, validated_data=vars(self))
            )
            if key in self.model_fields_set and getattr(self, key) != default:
                raise MisfitError(key, reason, remedy)
        return self

    @model_validator(mode="after")
    def _check_vary(self) -> "LearningStage":
        if self.vary:
            raise MisfitError(
                "vary", "becomes stages when a file is read, and this was none", "use load_run or read_run"
            )
        return self

    @model_validator(mode="after")
    def _check_offloading(self) -> "LearningStage":
        if self.offload_activations and self.gradient_checkpointing is False:
            raise MisfitError(
                "offload_activations",
                "without gradient_checkpointing there are too many activations to copy",
                "remove it, or set gradient_checkpointing: true",
            )
        return self

    @model_validator(mode="after")
    def _check_optimizer(self) -> "LearningStage":
        if self.lora is not None and not self.float32_masters:
            raise MisfitError(
                "optimizer", "adapters are held in float32 whatever the optimiser", "set optimizer: adamw"
            )
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> "LearningStage":
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


class DrawingStage(LearningStage, ABC):
    """A learning stage that draws samples from datasets, batch by batch."""

    #: The form that the drawn rows must have.
    use: ClassVar[Use]

    @property
    @abstractmethod
    def mixture(self) -> dict[str, float]:
        """Share of each dataset in every stretch of training."""

    @property
    def by_tokens(self) -> bool:
        """Whether the shares are shares of tokens and not of samples."""
        return False

    def steps_for(self, rows: int) -> int:
        """Return the optimiser steps of the whole stage, given the number of rows of one epoch."""
        epochs = self.num_train_epochs or 1
        return self.max_steps or math.ceil(epochs * rows / self.global_batch_size)

    def evaluation_steps(self, rows: int) -> list[int]:
        """Return the steps before the last after which checkpoints are measured, given an epoch's rows."""
        return []

    def arithmetic(self) -> list[tuple[str, str]]:
        """Return the calculations of batches."""
        size = self.global_batch_size
        sizes = f"{self.per_device_batch_size} × {self.gradient_accumulation_steps} accumulated"
        total = (
            f"{self.num_train_epochs or 1:g} × the data"
            if self.max_steps is None
            else f"{self.max_steps} steps × {size} = {self.max_steps * size:,}"
        )
        return [
            ("samples a step", f"{sizes} × {self.num_workers} workers = {size}"),
            ("samples", total),
            ("mixture", ", ".join(f"{name} {share:.0%}" for name, share in self.mixture.items())),
        ]

    @model_validator(mode="after")
    def _check_batch(self) -> "DrawingStage":
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
