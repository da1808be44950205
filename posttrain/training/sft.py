"""Supervised fine-tuning: TRL's SFTTrainer in Ray Train workers, with the recipe's data and loss.

TRL keeps the optimiser loop, the chunked language-model head and resuming. Ours are the mixture with
exact ratios, the rendering, the loss normalisation over the global batch and the atomic checkpoints.
"""

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from posttrain.config import RunConfig, SftStage
from posttrain.data.collation import collate, pad_rows
from posttrain.data.rendering import Rendered, Renderer
from posttrain.data.sources import Mixture, open_mixture
from posttrain.models.load import load_model
from posttrain.objectives.sft import Normalization, sft_loss, sft_normalizer
from posttrain.plugins import resolve
from posttrain.run_dir import RunDir, step_of
from posttrain.tracking import Tracker
from posttrain.training.distributed import rank, sum_over_ranks, world_size
from posttrain.training.optimizers import build_optimizer

IGNORED = -100
#: Rendered samples kept by a worker: tokens only, a few kB each; pixels have their own bounded cache.
RENDERED_KEPT = 16_384
#: Checkpoints of a stage that are kept: the newest, and one to fall back to.
CHECKPOINTS_KEPT = 2


class MixtureCollator:
    """Draw numbers to a padded batch: look up the mixture, render, collate, label.

    Args:
        mixture: Which sample each draw is.
        renderer: Of the checkpoint being trained.
        max_length: Most tokens of a sample.
    """

    def __init__(self, mixture: Mixture, renderer: Renderer, max_length: int) -> None:
        self._mixture = mixture
        self._renderer = renderer
        self._max_length = max_length
        self._render = functools.lru_cache(maxsize=RENDERED_KEPT)(self._render_sample)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """Batch the samples of `rows`, each `{"draw": i}`."""
        items = [self._render(*self._mixture.index(row["draw"])) for row in rows]
        batch = collate(items, self._renderer)
        supervised = pad_rows([item.supervised for item in items], False, bool)
        batch["labels"] = batch["input_ids"].masked_fill(~supervised, IGNORED)
        return batch

    def _render_sample(self, dataset: str, row: int) -> Rendered:
        sample = self._mixture.datasets[dataset][row]
        specs = [tool_spec(name) for name in sample.tools]
        rendered = self._renderer.render(sample.messages, tools=specs)
        if len(rendered.token_ids) > self._max_length:
            raise ValueError(
                f"dataset {dataset}, sample {sample.id}: {len(rendered.token_ids)} tokens are more than"
                f" data.max_length = {self._max_length}; raise it, or filter the dataset"
            )
        return rendered


@functools.lru_cache
def tool_spec(name: str) -> Any:
    """What the model is told of a tool."""
    tool: Any = resolve(name, "posttrain.tools")
    return (tool() if isinstance(tool, type) else tool).spec


class SupervisedTrainer(SFTTrainer):
    """SFTTrainer with our sample order, normalisation and checkpoints.

    Args:
        normalization: `sqrt`, `token` or `sample` (RECIPE §2).
        run: The run's directory.
        stage_name: Under which checkpoints are saved.
        **kwargs: SFTTrainer's own.
    """

    def __init__(self, *, normalization: Normalization, run: RunDir, stage_name: str, **kwargs: Any) -> None:
        self._normalization: Normalization = normalization
        self._run = run
        self._stage_name = stage_name
        super().__init__(**kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """In order: the mixture has shuffled and interleaved already."""
        return SequentialSampler(self.train_dataset)  # pyright: ignore[reportArgumentType]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The loss's normaliser over every micro-batch of every rank."""
        counts = torch.cat([(batch["labels"][:, 1:] != IGNORED).sum(1) for batch in batch_samples])
        return sum_over_ranks(sft_normalizer(counts, self._normalization).to(device))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The normalised loss of a micro-batch; DDP averages gradients, so it is scaled by the ranks."""
        outputs = model(**inputs, fused_lm_head=True)
        mask = inputs["labels"][:, 1:] != IGNORED
        sequence_ids = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[mask]
        normalizer = num_items_in_batch
        if normalizer is None:
            normalizer = self._get_num_items_in_batch([inputs], mask.device)
        loss = sft_loss(outputs.log_probs[mask], sequence_ids, normalizer, self._normalization)
        loss = loss * world_size()
        return (loss, outputs) if return_outputs else loss

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
    """Hands transformers' logs to our tracker."""

    def __init__(self, tracker: Tracker, stage_name: str) -> None:
        self._tracker = tracker
        self._stage_name = stage_name

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the training metrics of a step; the summary at the end is left out."""
        if logs and "loss" in logs:
            names = ("loss", "grad_norm", "learning_rate")
            found = {name: logs[name] for name in names if name in logs}
            self._tracker.log(self._stage_name, state.global_step, found)


def training_arguments(config: RunConfig, stage: SftStage, output_dir: Path, steps: int) -> SFTConfig:
    """Our keys as TRL's."""
    bf16 = config.model.dtype == "bfloat16"
    return SFTConfig(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=stage.per_device_batch_size,
        gradient_accumulation_steps=stage.gradient_accumulation_steps,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.lr_scheduler_type,
        warmup_steps=round(stage.warmup_ratio * steps),
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        logging_steps=stage.logging_steps,
        save_steps=stage.save_steps,
        save_strategy="steps",
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=stage.gradient_checkpointing,
        seed=config.seed,
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def sft_worker(arguments: dict[str, Any]) -> None:
    """What each worker of the stage runs (see `run_workers`).

    Args:
        arguments: `config` (RunConfig), `stage` (SftStage), `run` (RunDir), `checkpoint` (Path to start
            from) and `resume` (Path of this stage's own newest checkpoint, or None).
    """
    config: RunConfig = arguments["config"]
    stage: SftStage = arguments["stage"]
    run: RunDir = arguments["run"]
    checkpoint: Path = arguments["checkpoint"]
    resume: Path | None = arguments["resume"]
    settings = config.model
    renderer = Renderer.from_pretrained(
        checkpoint, settings.family_of(checkpoint), settings.min_pixels, settings.max_pixels
    )
    model = load_model(
        checkpoint,
        dtype=settings.dtype,
        freeze_vision_tower=settings.freeze_vision_tower,
        freeze_merger=settings.freeze_merger,
    )
    mixture = open_mixture(stage.data.mixture, config.seed, config.base_dir)
    steps = stage.steps_for(len(mixture))
    draws = steps * stage.global_batch_size
    tracker = Tracker(run, config.trackers) if rank() == 0 else None
    if tracker is not None:
        tracker.rewind(stage.name, step_of(resume) if resume else 0)
        tracker.start(stage.name, steps)
    trainer = SupervisedTrainer(
        normalization=stage.loss.normalization,
        run=run,
        stage_name=stage.name,
        model=model,
        args=training_arguments(config, stage, run.scratch(stage.name), steps),
        data_collator=MixtureCollator(mixture, renderer, stage.data.max_length),
        train_dataset=Dataset.from_dict({"draw": range(draws)}),
        processing_class=renderer.processor,
        optimizers=(
            build_optimizer([model], stage.optimizer, stage.learning_rate, stage.weight_decay),
            None,
        ),
        callbacks=[TrackerCallback(tracker, stage.name)] if tracker is not None else [],
    )
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if tracker is not None:
        tracker.close()
