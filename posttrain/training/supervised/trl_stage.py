"""What the stages that run TRL's trainers in Ray Train workers have in common.

TRL keeps the optimiser loop, the chunked language-model head and resuming. Ours are the mixture with exact
ratios, the rendering, the normalisation over the global batch and the atomic checkpoints.
"""

import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
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
from posttrain.data.curriculum import CurriculumMixture, LengthPhases
from posttrain.data.lengths import TokenCounter
from posttrain.data.mixing import Mixture
from posttrain.data.sources import open_mixture, row_lengths
from posttrain.files.durable import explaining_full_disk
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.sample_tokens import SampleTokens
from posttrain.run.directory import RunDir, step_of
from posttrain.run.process import stop_requested
from posttrain.run.tracking import Tracker
from posttrain.training.core.distributed import any_over_ranks, barrier, rank
from posttrain.training.core.policy import CHECKPOINTS_KEPT, load_policy
from posttrain.training.core.update_guard import UpdateGuard
from posttrain.training.stage_job import StageJob

#: Metric: updates since the row before that were skipped, their loss or gradient not being finite.
SKIPPED = "update/skipped"
#: Metric: samples with more than `data.max_length` tokens that were drawn since the row before.
LEFT_OUT = "data/left_out"


class StageTrainer(Trainer):
    """The half of our trainers that is not about their loss: sample order, checkpoints and faults.

    To be named before one of TRL's trainers among the base classes.

    Args:
        run: The run's directory.
        stage_name: Under which checkpoints are saved.
        max_skipped_updates: Updates in a row that are not finite before the stage ends.
        **kwargs: The trainer's own.
    """

    _metrics: dict[str, defaultdict[str, list[float]]]  # TRL's means since the last row, by mode
    _tr_loss: torch.Tensor  # transformers' sum since then

    def __init__(self, *, run: RunDir, stage_name: str, max_skipped_updates: int, **kwargs: Any) -> None:
        self._run = run
        self._stage_name = stage_name
        self._guard = UpdateGuard(
            max_skipped_updates, "Lower learning_rate, or look for the samples of these steps"
        )
        self._loss_is_finite = torch.tensor(True)
        self._counts: Counter[str] = Counter()
        super().__init__(**kwargs)
        if rank() == 0:  # what a killed process left half written
            for leftover in run.scratch(stage_name).glob("checkpoint-*"):
                shutil.rmtree(leftover)

    def count(self, figure: str, number: int) -> None:
        """Add to a figure that the next row of metrics tells, the same on every rank."""
        self._counts[figure] += number

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers does, with what was counted since the last row."""
        if "loss" in logs:
            self._counts[SKIPPED] += 0
            logs = logs | {figure: float(number) for figure, number in self._counts.items()}
            self._counts.clear()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """In order: the mixture has shuffled and interleaved already."""
        return SequentialSampler(self.train_dataset)  # pyright: ignore[reportArgumentType]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of a micro-batch, whose loss is noted."""
        loss = super().training_step(*args, **kwargs)
        self._loss_is_finite = self._loss_is_finite & torch.isfinite(loss)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """Between the gradients and the optimiser: skip what is not finite, and see whether to end."""
        broken = self._guard.broken(self.model.named_parameters())  # pyright: ignore
        norm: Any = super()._clip_grad_norm(model)
        finite = bool(self._loss_is_finite) and math.isfinite(norm)
        self._loss_is_finite = torch.tensor(True)
        skip, stop = any_over_ranks(not finite, stop_requested(self._run))
        if not self._guard.admits(not skip, broken):
            self.count(SKIPPED, 1)
            model.zero_grad(set_to_none=True)  # without gradients the optimiser leaves everything as it is
        if stop:
            self.control.should_save = self.control.should_training_stop = True
        if self.state.global_step + 1 == self.state.max_steps:  # the steps since the last row have theirs too
            self.control.should_log = True
        return norm

    def _get_output_dir(self, trial: Any) -> str:
        """Transformers writes here; `_save_checkpoint` moves the result to its place."""
        return str(self._run.scratch(self._stage_name))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        written = Path(self._get_output_dir(trial)) / f"checkpoint-{step}"
        try:
            with explaining_full_disk(self._run.stage_dir(self._stage_name) / written.name):
                super()._save_checkpoint(model, trial)
            barrier()  # every rank has written its random state
            if rank() == 0:
                (written / TRAINING_ARGS_NAME).unlink()  # a pickle, which nobody should load
                self._run.save_checkpoint(
                    self._stage_name, step, lambda path: _move_into(path, written), keep=CHECKPOINTS_KEPT
                )
        finally:
            if rank() == 0:
                shutil.rmtree(written, ignore_errors=True)
        barrier()

    def _save_rng_state(self, output_dir: str) -> None:
        """With the figures that no row has told yet, or the first row after resuming would differ."""
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
        super()._load_rng_state(checkpoint)
        path = Path(checkpoint or "") / _figures_name()
        if not path.is_file():  # the stage goes on with another number of workers
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
    """Beside transformers' random state of this rank."""
    return f"figures_{rank()}.json"


class TrackerCallback(TrainerCallback):
    """Hands transformers' logs to our tracker.

    Args:
        tracker: Of the run.
        stage_name: Of the rows.
        extra: Figures to pass on besides loss, gradient norm, learning rate and what was skipped or left out.
    """

    def __init__(self, tracker: Tracker, stage_name: str, extra: tuple[str, ...] = ()) -> None:
        self._tracker = tracker
        self._stage_name = stage_name
        self._names = ("loss", "grad_norm", "learning_rate", SKIPPED, LEFT_OUT, *extra)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the figures of a step or of a measurement; the summary at the end is left out."""
        if logs and not {"loss", "eval_loss"}.isdisjoint(logs):
            found = {name: logs[name] for name in self._names if name in logs}
            self._tracker.log(self._stage_name, state.global_step, found)


class StopAt(TrainerCallback):
    """Ends training after a step, with a checkpoint from which it can go on as if it had not ended.

    Args:
        step: The optimiser step.
    """

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for both where the step has come."""
        if state.global_step == self._step:
            control.should_save = control.should_training_stop = True


def trainer_arguments(config: RunConfig, stage: DrawingStage, output_dir: Path, steps: int) -> dict[str, Any]:
    """Translate a stage's keys into those that all of transformers' trainers take."""
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
    """What every worker of a stage opens.

    Attributes:
        renderer: Of the checkpoint that the stage begins with.
        model: Its weights.
        mixture: What is drawn from.
        steps: Optimiser steps in total.
        tracker: On rank 0.
    """

    renderer: Renderer
    model: PreTrainedModel
    mixture: Mixture
    steps: int
    tracker: Tracker | None


@contextmanager
def stage_parts(job: StageJob[DrawingStage]) -> Iterator[StageParts]:
    """Open what a worker of a stage needs, and end it afterwards."""
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
    """A mixture in the two phases of a stage's curriculum."""
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
