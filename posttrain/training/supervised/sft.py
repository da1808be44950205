"""Supervised fine-tuning: TRL's SFTTrainer in Ray Train workers, with the recipe's data and loss.

Ours are the loss and its normalisation over the global batch; `trl_stage` has what the stages share.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from posttrain.config import RunConfig, SupervisedStage
from posttrain.models.lora import adapted_layers, with_lora
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.objectives.sft import Normalization, sft_loss, sft_normalizer
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import DATA_LEFT_OUT
from posttrain.run.record import ADAPTERS
from posttrain.training.core.distributed import sum_over_ranks, training_device, world_size
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.batches import (
    Batch,
    PackedBatches,
    PaddedBatches,
    RankBatch,
    RenderedDraws,
    model_inputs,
    sequence_ids,
)
from posttrain.training.supervised.callbacks import StopAt, TrackerCallback
from posttrain.training.supervised.stage_parts import StageParts, stage_parts
from posttrain.training.supervised.trl_stage import StageTrainer, trainer_arguments


class SFTTrainerParts(TypedDict, total=False):
    """The arguments of TRL's SFTTrainer, as far as stages give them."""

    model: PreTrainedModel | PeftModel
    args: SFTConfig
    data_collator: PaddedBatches | PackedBatches
    train_dataset: Dataset
    processing_class: PreTrainedTokenizerBase | ProcessorMixin
    callbacks: list[TrainerCallback]


class SupervisedTrainer(StageTrainer, SFTTrainer):
    """SFTTrainer with our sample order, normalisation, optimisers and checkpoints.

    Args:
        run: The run's directory.
        stage: The stage's settings.
        **parts: SFTTrainer's own arguments; the model has a supervised head.
    """

    def __init__(self, *, run: RunDir, stage: SupervisedStage, **parts: Unpack[SFTTrainerParts]) -> None:
        self._normalization: Normalization = stage.normalization
        self.begin(run, stage)
        super().__init__(**parts)  # pyright: ignore[reportArgumentType] (a TypedDict is a dict)

    def _get_num_items_in_batch(self, batch_samples: list[RankBatch], device: torch.device) -> Tensor:
        """Compute the loss's normaliser over every micro-batch of every rank; count what was left out."""
        sums = torch.zeros(2, dtype=torch.float64)
        for share in batch_samples:
            sums[0] += sft_normalizer(share["supervised"].cpu(), self._normalization)
            sums[1] += share["left_out"].cpu()
        normalizer, left_out = sum_over_ranks(sums)
        self.count(DATA_LEFT_OUT, int(left_out))
        # At least 1 as soon as one token is supervised; where none is, the loss is 0 and not 0/0.
        return normalizer.clamp(min=1).to(device)

    def training_step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: nn.Module, inputs: RankBatch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run every micro-batch forward and backward; replicas exchange gradients after the last."""
        *others, last = inputs["micro_batches"]
        losses = [self.micro_step(model, make(), num_items_in_batch, last=False) for make in others]
        whole_step = self.accelerator.sync_gradients
        losses.append(self.micro_step(model, last(), num_items_in_batch, last=whole_step))
        return torch.stack(losses).sum()

    def batch_loss(self, model: nn.Module, batch: Batch, normalizer: Tensor) -> Tensor:
        """Compute a micro-batch's share of the loss; see `sft_loss`."""
        logprobs = model(**model_inputs(batch), supervised_labels=batch["labels"])
        return sft_loss(logprobs, samples_of(batch), normalizer, self._normalization)


def samples_of(batch: Batch) -> Tensor:
    """Return [T] the sample within the micro-batch that each supervised token belongs to."""
    return sequence_ids(batch)[:, 1:][batch["labels"][:, 1:] != IGNORED]


def training_arguments(config: RunConfig, stage: SupervisedStage, output_dir: Path, steps: int) -> SFTConfig:
    """Translate a stage's settings into TRL's; the arguments are those of `trainer_arguments`."""
    arguments = trainer_arguments(config, stage, output_dir, steps)
    if stage.data.packing:  # one item of the dataset is all that a rank does in a step (see `PackedBatches`)
        arguments["per_device_train_batch_size"] = 1
    return SFTConfig(
        **arguments,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def sft_batches(
    stage: SupervisedStage,
    parts: StageParts,
    max_draws: int,
    make_draws: Callable[..., RenderedDraws] = RenderedDraws,
) -> tuple[PaddedBatches | PackedBatches, Dataset]:
    """Make the collator that turns draws into batches, and the dataset of numbers that it is called with.

    Args:
        stage: The stage's settings.
        parts: The stage's model, renderer and mixture.
        max_draws: Number of draws that the stage makes in total.
        make_draws: Makes what renders the samples.
    """
    length = stage.data.max_length
    # Micro-batches are made as they are needed, so their pixels can be made where the model is.
    renderer = parts.renderer.on(training_device(parts.use_gpu))
    draws = make_draws(parts.mixture, renderer, length, max_draws)
    if not stage.data.packing:
        return PaddedBatches(draws, renderer), Dataset.from_dict({"draw": range(max_draws)})
    rope_index = getattr(parts.model.base_model, "get_rope_index", None)  # a text model has none
    batches = PackedBatches(draws, renderer, rope_index, samples=stage.global_batch_size)
    return batches, Dataset.from_dict({"draw": range(parts.steps * world_size())})


def sft_worker(
    job: StageJob[SupervisedStage],
    make_draws: Callable[..., RenderedDraws] = RenderedDraws,
    make_trainer: Callable[..., SupervisedTrainer] = SupervisedTrainer,
    figures: tuple[str, ...] = (),
) -> None:
    """Train in one worker of the stage (see `run_workers`).

    Args:
        job: The stage's work.
        make_draws: Makes what renders the samples.
        make_trainer: Makes the trainer.
        figures: Names of more figures that the trainer logs.
    """
    config, stage, run, resume = job.config, job.stage, job.run, job.resume
    with stage_parts(job) as parts:
        batches, draws = sft_batches(stage, parts, parts.steps * stage.global_batch_size, make_draws)
        add_supervised_head(parts.model)
        if stage.data.packing:
            use_packed_attention(parts.model)
        model = parts.model if stage.lora is None else with_lora(parts.model, stage.lora, config.seed)
        tracker = parts.tracker
        if tracker is not None and isinstance(model, PeftModel):
            adapted_layers(model).write(run.stage_dir(stage.name) / ADAPTERS)
        callbacks: list[TrainerCallback] = [StopAt(job.until or parts.steps)]
        if tracker is not None:
            callbacks.append(TrackerCallback(tracker, stage.name, figures))
        trainer = make_trainer(
            run=run,
            stage=stage,
            model=model,
            args=training_arguments(config, stage, run.scratch(stage.name), parts.steps),
            data_collator=batches,
            train_dataset=draws,
            processing_class=parts.renderer.processor,
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
