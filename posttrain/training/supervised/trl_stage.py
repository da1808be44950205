"""The common part of the stages that run TRL's trainers in Ray Train workers.

TRL and transformers do the optimiser loop, adapters, sharding and resuming. Ours are the mixture with exact
ratios, the rendering, the loss with its normalisation over the global batch, and the atomic checkpoints.
"""

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINING_ARGS_NAME

from posttrain.config import DrawingStage, RunConfig, SupervisedStage
from posttrain.config.learning import Scheduler
from posttrain.data.curriculum import CurriculumMixture, LengthPhases
from posttrain.data.lengths import TokenCounter
from posttrain.data.mixing import Mixture
from posttrain.data.sources import open_mixture, row_lengths
from posttrain.files.durable import explaining_full_disk
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.sample_tokens import SampleTokens
from posttrain.run.directory import RunDir, step_of
from posttrain.run.metric_names import (
    DATA_LEFT_OUT,
    GRAD_NORM,
    HELD_OUT_LOSS,
    LEARNING_RATE,
    LOSS,
    UPDATE_SKIPPED,
)
from posttrain.run.process import stop_requested
from posttrain.run.tracking import Tracker
from posttrain.training.core.distributed import any_over_ranks, barrier, rank, world_size
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.policy import CHECKPOINTS_KEPT, load_policy
from posttrain.training.core.update_guard import UpdateGuard
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.batches import Batch


class StageTrainer(Trainer, ABC):
    """The part of our trainers that does not depend on the loss: samples in order, checkpoints, faults.

    It stands before one of TRL's trainers among the base classes; `begin` runs before TRL's constructor.
    """

    #: Tells transformers that `compute_loss` has counted every micro-batch of the step.
    loss_is_scaled_for_ga = True
    _metrics: dict[str, defaultdict[str, list[float]]]  # TRL's means since the last row, by mode
    _tr_loss: Tensor  # transformers' sum since then

    def begin(self, run: RunDir, stage: DrawingStage) -> None:
        """Set what the trainer needs of its stage, and remove what a killed process left half written.

        Args:
            run: The run's directory.
            stage: The stage's settings.
        """
        self._run = run
        self._settings = stage
        self._guard = UpdateGuard(
            stage.max_skipped_updates, "Lower learning_rate, or look for the samples of these steps"
        )
        self._loss_is_finite = torch.tensor(True)
        self._counts: Counter[str] = Counter()
        if rank() == 0:
            for leftover in run.scratch(stage.name).glob("checkpoint-*"):
                shutil.rmtree(leftover)

    @abstractmethod
    def batch_loss(self, model: nn.Module, batch: Batch, normalizer: Tensor) -> Tensor:
        """Compute a micro-batch's share of the loss.

        Args:
            model: The model, as the training loop has wrapped it.
            batch: The micro-batch; it is not changed.
            normalizer: The loss's normaliser over every micro-batch of every rank.
        """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return `batch_loss`, scaled by the number of ranks, since DDP and FSDP average gradients."""
        assert isinstance(num_items_in_batch, Tensor), "the loss needs the normaliser of the whole step"
        return self.batch_loss(model, inputs, num_items_in_batch) * world_size()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the stage's optimiser; FSDP and PEFT have changed the model's parameters by now."""
        if self.optimizer is None:
            stage = self._settings
            assert isinstance(self.model, nn.Module)
            self.optimizer = build_optimizer(
                [self.model], stage.optimizer, stage.learning_rate, stage.weight_decay
            )
        return self.optimizer

    def count(self, figure: str, number: int) -> None:
        """Add to a figure of the next row of metrics; every rank must add the same."""
        self._counts[figure] += number

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as transformers does, and with it what was counted since the last row."""
        if LOSS in logs:
            self._counts[UPDATE_SKIPPED] += 0
            logs = logs | {figure: float(number) for figure, number in self._counts.items()}
            self._counts.clear()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        """Draw in order: the mixture has shuffled and interleaved already."""
        return SequentialSampler(self.train_dataset)  # pyright: ignore[reportArgumentType]

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run a micro-batch forward and backward, and note whether its loss is finite."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._loss_is_finite = self._loss_is_finite & torch.isfinite(loss)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float:
        """Clip the gradients; skip the update if they are not finite; see whether to end.

        transformers calls this between the backward passes of a step and the optimiser.
        """
        assert isinstance(self.model, nn.Module)
        broken = self._guard.broken(self.model.named_parameters())
        norm = super()._clip_grad_norm(model)
        assert norm is not None
        finite = bool(self._loss_is_finite) and math.isfinite(norm)
        self._loss_is_finite = torch.tensor(True)
        skip, stop = any_over_ranks(not finite, stop_requested(self._run))
        if not self._guard.admits(not skip, broken):
            self.count(UPDATE_SKIPPED, 1)
            model.zero_grad(set_to_none=True)  # without gradients the optimiser leaves everything as it is
        if stop:
            self.control.should_save = self.control.should_training_stop = True
        if self.state.global_step + 1 == self.state.max_steps:  # the steps since the last row have theirs too
            self.control.should_log = True
        return norm

    def _get_output_dir(self, trial: object) -> str:
        """Return the folder that transformers writes to; `_save_checkpoint` moves the result to its place."""
        return str(self._run.scratch(self._settings.name))

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Write a checkpoint to a scratch folder, then move it into the run's directory as a whole."""
        step, stage_name = self.state.global_step, self._settings.name
        written = Path(self._get_output_dir(trial)) / f"checkpoint-{step}"
        try:
            with explaining_full_disk(self._run.stage_dir(stage_name) / written.name):
                super()._save_checkpoint(model, None)  # no search for hyper-parameters, so no trial
            barrier()  # every rank has written its random state
            if rank() == 0:
                (written / TRAINING_ARGS_NAME).unlink()  # a pickle, which nobody should load
                self._run.save_checkpoint(
                    stage_name, step, lambda path: _move_into(path, written), keep=CHECKPOINTS_KEPT
                )
        finally:
            if rank() == 0:
                shutil.rmtree(written, ignore_errors=True)
        barrier()

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state, and the figures since the last row, which the next row needs."""
        super()._save_rng_state(output_dir)
        figures = {
            "loss": self._tr_loss.item(),
            "last_row": self._globalstep_last_logged,
            "counts": self._counts,
            "means": self._metrics["train"],
            "skipped_in_a_row": self._guard.in_a_row,
        }
        (Path(output_dir) / _figures_name()).write_text(json.dumps(figures))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore what `_save_rng_state` has saved."""
        super()._load_rng_state(checkpoint)
        path = Path(checkpoint or "") / _figures_name()
        if not path.is_file():  # the stage continues with another number of workers
            return
        figures = json.loads(path.read_text())
        self._tr_loss += figures["loss"]
        self._globalstep_last_logged = figures["last_row"]
        self._counts.update(figures["counts"])  # adds: the first draws have been made
        self._metrics["train"].update(figures["means"])
        self._guard.in_a_row = figures["skipped_in_a_row"]


def _move_into(folder: Path, written: Path) -> None:
    for path in written.iterdir():
        path.rename(folder / path.name)


def _figures_name() -> str:
    """Return the name of the file with this rank's figures, beside its random state."""
    return f"figures_{rank()}.json"


class TrackerCallback(TrainerCallback):
    """Hands transformers' logs to our tracker.

    Args:
        tracker: The run's tracker.
        stage_name: The stage's name.
        extra: Names of more figures to pass on, besides those that every stage has.
    """

    def __init__(self, tracker: Tracker, stage_name: str, extra: tuple[str, ...] = ()) -> None:
        self._tracker = tracker
        self._stage_name = stage_name
        self._names = (LOSS, GRAD_NORM, LEARNING_RATE, UPDATE_SKIPPED, DATA_LEFT_OUT, *extra)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Log the figures of a step or of a measurement; the summary at the end is left out."""
        if logs and not {LOSS, HELD_OUT_LOSS}.isdisjoint(logs):
            found = {name: logs[name] for name in self._names if name in logs}
            self._tracker.log(self._stage_name, state.global_step, found)


class StopAt(TrainerCallback):
    """Ends training after a step, with a checkpoint from which it can continue as if it had not ended.

    Args:
        step: The optimiser step.
    """

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask for a checkpoint and for the end once the step is done."""
        if state.global_step == self._step:
            control.should_save = control.should_training_stop = True


class TrainerArguments(TypedDict):
    """The arguments that all of transformers' trainers take, as far as stages set them."""

    output_dir: str
    max_steps: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    lr_scheduler_type: Scheduler
    warmup_steps: float
    weight_decay: float
    max_grad_norm: float
    logging_steps: float
    save_steps: float
    save_strategy: str
    bf16: bool
    use_cpu: bool
    gradient_checkpointing: bool
    seed: int
    report_to: str
    disable_tqdm: bool
    remove_unused_columns: bool
    fsdp: bool  # as transformers documents it; its annotation says text
    fsdp_config: dict[str, object]


def trainer_arguments(
    config: RunConfig, stage: DrawingStage, output_dir: Path, steps: int
) -> TrainerArguments:
    """Translate a stage's settings into the arguments that all of transformers' trainers take.

    Args:
        config: The run's settings.
        stage: The stage's settings.
        output_dir: Where transformers writes.
        steps: Optimiser steps in total.
    """
    return {
        "output_dir": str(output_dir),
        "max_steps": steps,
        "per_device_train_batch_size": stage.per_device_batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation_steps,
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": stage.lr_scheduler_type,
        "warmup_steps": stage.warmup_steps(steps),
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "logging_steps": stage.logging_steps,
        "save_steps": stage.save_steps,
        "save_strategy": "steps",
        "bf16": config.model.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": stage.gradient_checkpointing,
        "seed": config.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "fsdp": stage.sharding == "fsdp2",
        # A layer at a time; rank 0 writes whole models.
        "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"},
    }


@dataclass
class StageParts:
    """What every worker of a stage needs, opened.

    Attributes:
        renderer: The renderer of the checkpoint that the stage starts from.
        model: The model of that checkpoint.
        mixture: The samples to draw from.
        steps: Optimiser steps in total.
        tracker: The run's tracker on rank 0; None on other ranks.
    """

    renderer: Renderer
    model: PreTrainedModel
    mixture: Mixture
    steps: int
    tracker: Tracker | None


@contextmanager
def stage_parts(job: StageJob[DrawingStage]) -> Iterator[StageParts]:
    """Open what a worker of a stage needs, and close the tracker afterwards."""
    config, stage = job.config, job.stage
    renderer = Renderer.from_config(job.checkpoint, config.model)
    mixture = stage_mixture(job, renderer)
    parts = StageParts(
        renderer=renderer,
        mixture=mixture,
        model=load_policy(config.model, job.checkpoint, stage.lora.quantization if stage.lora else None),
        steps=stage.steps_for(len(mixture)),
        tracker=Tracker(job.run, config.trackers) if rank() == 0 else None,
    )
    if parts.tracker is not None:
        parts.tracker.rewind(stage.name, step_of(job.resume) if job.resume else -1)
        parts.tracker.start(stage.name, parts.steps)
    yield parts
    if parts.tracker is not None:
        parts.tracker.close()


def stage_mixture(job: StageJob[DrawingStage], renderer: Renderer) -> Mixture:
    """Open a stage's datasets as one mixture, in the order of its curriculum if it has one."""
    config, stage = job.config, job.stage
    mixture = open_mixture(
        stage.mixture,
        config.seed,
        config.base_dir,
        counter=SampleTokens(renderer) if stage.by_tokens else None,
        replaced=job.replaced,
        use=stage.use,
    )
    if isinstance(stage, SupervisedStage) and stage.data.curriculum is not None:
        return curriculum_mixture(mixture, stage, config.seed, SampleTokens(renderer))
    return mixture


def curriculum_mixture(
    mixture: Mixture, stage: SupervisedStage, seed: int, counter: TokenCounter, cache_dir: Path | None = None
) -> CurriculumMixture:
    """Put a mixture into the order of a stage's curriculum: short samples first, then all lengths."""
    data = stage.data
    assert data.curriculum is not None
    phases = LengthPhases(
        short_length=data.curriculum.short_length,
        max_length=data.max_length,
        long_share=data.curriculum.long_share,
        second_from=stage.long_samples_from(len(mixture)),
    )
    lengths = row_lengths(mixture.datasets, counter, cache_dir)
    return CurriculumMixture(mixture, data.mixture, seed, lengths, phases, data.mixture_by == "tokens")
