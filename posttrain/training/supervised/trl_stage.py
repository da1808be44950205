"""The common part of the stages that run TRL's trainers in Ray Train workers.

TRL and transformers do the optimiser loop, adapters, sharding and resuming. Ours are the mixture with exact
ratios, the rendering, the loss with its normalisation over the global batch, and the atomic checkpoints.
"""

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from pathlib import Path
from typing import TypedDict

import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer

from posttrain.config import DrawingStage, RunConfig
from posttrain.config.learning import Scheduler
from posttrain.files.durable import explaining_full_disk
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import LOSS, UPDATE_SKIPPED
from posttrain.run.process import stop_requested
from posttrain.training.core.checkpoints import load_state, save_state, write_weights
from posttrain.training.core.distributed import any_over_ranks, barrier, rank, world_size
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.policy import (
    CHECKPOINTS_KEPT,
    clip_gradients,
    continue_schedule,
)
from posttrain.training.core.sharding import reduce_over_replicas, shard
from posttrain.training.core.update_guard import UpdateGuard
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
        """Return `batch_loss`."""
        assert isinstance(num_items_in_batch, Tensor), "the loss needs the normaliser of the whole step"
        return self.batch_loss(model, inputs, num_items_in_batch)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Leave the model where it is: `shard` moves it layer by layer, so it need not fit as a whole."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read adapters; `stage_parts` has loaded a whole model from the checkpoint.

        transformers would look for tensors under the names that they have in memory, and published
        checkpoints have others: it would read none of them, and tell nobody.
        """
        if not isinstance(self.model, PeftModel):
            return
        for parameter in self.model.parameters():
            if parameter.requires_grad:  # TRL has rounded adapters over quantised weights to bfloat16
                parameter.data = parameter.data.float()
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader]:
        """Shard the model, whose weights are those of the checkpoint by now, and tell transformers so."""
        assert isinstance(self.model, PreTrainedModel | PeftModel)
        stage = self._settings
        shard(self.model, stage.sharding, self.args.device, masters=stage.float32_masters)
        # accelerate would wrap it once more, by DDP.
        self.is_distributed_loading_by_transformers = True
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the stage's optimiser of the sharded parameters."""
        if self.optimizer is None:
            stage = self._settings
            assert isinstance(self.model, nn.Module)
            self.optimizer = build_optimizer(
                [self.model], stage.optimizer, stage.learning_rate, stage.weight_decay
            )
        return self.optimizer

    @abstractmethod
    def measure_held_out(self) -> dict[str, float]:
        """Return the figures of the held-out rows, each measured exactly once; every rank takes its share."""

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Measure the held-out rows, and log the figures."""
        assert isinstance(self.model, nn.Module)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            metrics = self.measure_held_out()
        self.log(dict(metrics))  # before training mode, in which TRL would add the training figures
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

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
        """Run a micro-batch forward and backward; see `micro_step`."""
        return self.micro_step(model, inputs, num_items_in_batch, self.accelerator.sync_gradients)

    def micro_step(
        self, model: nn.Module, inputs: Batch, normalizer: Tensor | int | None, last: bool
    ) -> Tensor:
        """Run a micro-batch forward and backward, and note whether its loss is finite.

        Args:
            model: The model.
            inputs: The micro-batch.
            normalizer: The loss's normaliser.
            last: Whether it is the step's last, after which the optimiser follows.

        Returns:
            This rank's share of the loss, times the number of ranks: transformers logs their mean.
        """
        reduce_over_replicas(model, last)
        loss = super().training_step(model, inputs, normalizer)
        self._loss_is_finite = self._loss_is_finite & torch.isfinite(loss)
        return loss * world_size()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float:
        """Clip the gradients; skip the update if they are not finite; see whether to end.

        transformers calls this between the backward passes of a step and the optimiser.
        """
        assert isinstance(self.model, nn.Module)
        broken = self._guard.broken(self.model.named_parameters())
        norm = clip_gradients(model.parameters(), self.args.max_grad_norm)
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
                self._run.save_checkpoint(
                    stage_name, step, lambda path: _move_into(path, written), keep=CHECKPOINTS_KEPT
                )
        finally:
            if rank() == 0:
                shutil.rmtree(written, ignore_errors=True)
        barrier()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights or adapters, and the processor; every rank calls this."""
        assert output_dir is not None
        assert isinstance(self.model, PreTrainedModel | PeftModel)
        write_weights(self.model, Path(output_dir))
        if rank() == 0 and self.processing_class is not None:
            self.processing_class.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write this rank's part of the training state."""
        assert isinstance(self.model, nn.Module)
        figures = {"updates": self._schedule.last_epoch, "skipped_in_a_row": self._guard.in_a_row}
        save_state(Path(output_dir), self.model, self._own_optimizer, figures)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore what `_save_optimizer_and_scheduler` has saved."""
        if checkpoint is None:
            return
        assert isinstance(self.model, nn.Module)
        figures = load_state(Path(checkpoint), self.model, self._own_optimizer)
        continue_schedule(self._schedule, figures["updates"])
        self._guard.in_a_row = figures["skipped_in_a_row"]

    @property
    def _own_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser inside accelerate's."""
        assert isinstance(self.optimizer, AcceleratedOptimizer)
        return self.optimizer.optimizer

    @property
    def _schedule(self) -> LambdaLR:
        """The schedule of the learning rate."""
        assert isinstance(self.lr_scheduler, LambdaLR)
        return self.lr_scheduler

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state, and the figures since the last row, which the next row needs."""
        super()._save_rng_state(output_dir)
        figures = {
            "loss": self._tr_loss.item(),
            "last_row": self._globalstep_last_logged,
            "counts": self._counts,
            "means": self._metrics["train"],
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


def _move_into(folder: Path, written: Path) -> None:
    for path in written.iterdir():
        path.rename(folder / path.name)


def _figures_name() -> str:
    """Return the name of the file with this rank's figures, beside its random state."""
    return f"figures_{rank()}.json"


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
    use_cpu: bool
    gradient_checkpointing: bool
    gradient_checkpointing_kwargs: dict[str, bool]
    seed: int
    report_to: str
    disable_tqdm: bool
    remove_unused_columns: bool
    bf16: bool


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
        "bf16": False,  # `shard` sets the types; autocast would set others
        "use_cpu": not config.use_gpu,
        "gradient_checkpointing": bool(stage.gradient_checkpointing),
        "gradient_checkpointing_kwargs": {"use_reentrant": False}
        | ({"offload": True} if stage.offload_activations else {}),
        "seed": config.seed_of(stage),
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
