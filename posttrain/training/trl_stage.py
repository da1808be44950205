"""What the stages that run TRL's trainers in Ray Train workers have in common.

TRL keeps the optimiser loop, the chunked language-model head and resuming. Ours are the mixture with exact
ratios, the rendering, the normalisation over the global batch and the atomic checkpoints.
"""

import shutil
from collections.abc import Iterator, Mapping
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

from posttrain.config import DataConfig, RunConfig
from posttrain.config.trainer import TrainerStage
from posttrain.data.rendering import Renderer
from posttrain.data.sample_tokens import SampleTokens
from posttrain.data.sources import Mixture, open_mixture
from posttrain.models.load import load_model
from posttrain.run_dir import RunDir, step_of
from posttrain.tracking import Tracker
from posttrain.training.distributed import rank, sum_over_ranks

#: Checkpoints of a stage that are kept: the newest, and one to fall back to.
CHECKPOINTS_KEPT = 2


class StageTrainer(Trainer):
    """The half of our trainers that is not about their loss: sample order and checkpoints.

    To be named before one of TRL's trainers among the base classes.

    Args:
        run: The run's directory.
        stage_name: Under which checkpoints are saved.
        **kwargs: The trainer's own.
    """

    def __init__(self, *, run: RunDir, stage_name: str, **kwargs: Any) -> None:
        self._run = run
        self._stage_name = stage_name
        super().__init__(**kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """In order: the mixture has shuffled and interleaved already."""
        return SequentialSampler(self.train_dataset)  # pyright: ignore[reportArgumentType]

    def _get_output_dir(self, trial: Any) -> str:
        """Transformers writes here; `_save_checkpoint` moves the result to its place."""
        return str(self._run.scratch(self._stage_name))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        sum_over_ranks(torch.zeros(1))  # every rank has written its random state
        step = self.state.global_step
        written = Path(self._get_output_dir(trial)) / f"checkpoint-{step}"
        if rank() == 0:
            self._run.save_checkpoint(
                self._stage_name,
                step,
                lambda path: shutil.copytree(written, path, dirs_exist_ok=True),
                keep=CHECKPOINTS_KEPT,
            )
            shutil.rmtree(written)
        sum_over_ranks(torch.zeros(1))


class TrackerCallback(TrainerCallback):
    """Hands transformers' logs to our tracker.

    Args:
        tracker: Of the run.
        stage_name: Of the rows.
        extra: Figures to pass on besides loss, gradient norm and learning rate, where they are logged.
    """

    def __init__(self, tracker: Tracker, stage_name: str, extra: tuple[str, ...] = ()) -> None:
        self._tracker = tracker
        self._stage_name = stage_name
        self._names = ("loss", "grad_norm", "learning_rate", *extra)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the figures of a step; the summary at the end, which has none of them, is left out."""
        found = {name: logs[name] for name in self._names if name in logs} if logs else {}
        if found:
            self._tracker.log(self._stage_name, state.global_step, found)


def trainer_arguments(config: RunConfig, stage: TrainerStage, output_dir: Path, steps: int) -> dict[str, Any]:
    """Our keys as those that all of transformers' trainers take."""
    return {
        "output_dir": str(output_dir),
        "max_steps": steps,
        "per_device_train_batch_size": stage.per_device_batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation_steps,
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": stage.lr_scheduler_type,
        "warmup_steps": round(stage.warmup_ratio * steps),
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
def stage_parts(arguments: Mapping[str, Any]) -> Iterator[StageParts]:
    """Open what a worker of a stage needs.

    Args:
        arguments: `config` (RunConfig), `stage` (SftStage or DpoStage), `run` (RunDir), `checkpoint` (Path
            to start from) and `resume` (Path of this stage's own newest checkpoint, or None).
    """
    config: RunConfig = arguments["config"]
    stage: Any = arguments["stage"]
    resume: Path | None = arguments["resume"]
    checkpoint: Path = arguments["checkpoint"]
    renderer = Renderer.from_config(checkpoint, config.model)
    by_tokens = isinstance(stage.data, DataConfig) and stage.data.mixture_by == "tokens"
    counter = SampleTokens(renderer) if by_tokens else None
    mixture = open_mixture(stage.data.mixture, config.seed, config.base_dir, counter=counter)
    parts = StageParts(
        renderer=renderer,
        model=load_stage_model(config, checkpoint),
        mixture=mixture,
        steps=stage.steps_for(len(mixture)),
        tracker=Tracker(arguments["run"], config.trackers) if rank() == 0 else None,
    )
    if parts.tracker is not None:
        parts.tracker.rewind(stage.name, step_of(resume) if resume else 0)
        parts.tracker.start(stage.name, parts.steps)
    yield parts
    if parts.tracker is not None:
        parts.tracker.close()


def load_stage_model(config: RunConfig, checkpoint: Path) -> PreTrainedModel:
    """A checkpoint's weights, frozen as the run says."""
    return load_model(
        checkpoint,
        dtype=config.model.dtype,
        freeze_vision_tower=config.model.freeze_vision_tower,
        freeze_merger=config.model.freeze_merger,
    )
