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
from posttrain.config.held_out import HeldOutKeys
from posttrain.models.lora import adapted_layers, with_lora
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.objectives.sft import Normalization, sft_loss, sft_normalizer
from posttrain.rendering.rendering import Renderer
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import DATA_LEFT_OUT, HELD_OUT_LEFT_OUT, HELD_OUT_LOSS
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
from posttrain.training.supervised.held_out import HeldOutDialogues, evaluation_arguments, held_out_draws
from posttrain.training.supervised.stage_parts import StageParts, stage_parts
from posttrain.training.supervised.trl_stage import StageTrainer, trainer_arguments


class SFTTrainerParts(TypedDict, total=False):
    """The arguments of TRL's SFTTrainer, as far as stages give them."""

    model: PreTrainedModel | PeftModel
    args: SFTConfig
    data_collator: PaddedBatches | PackedBatches
    train_dataset: Dataset
    eval_dataset: Dataset | None
    processing_class: PreTrainedTokenizerBase | ProcessorMixin
    callbacks: list[TrainerCallback]


class SupervisedTrainer(StageTrainer, SFTTrainer):
    """SFTTrainer with our sample order, normalisation, optimisers and checkpoints.

    Args:
        run: The run's directory.
        stage: The stage's settings.
        held_out: The dialogues on which the loss is measured, if there are any.
        **parts: SFTTrainer's own arguments; the model has a supervised head.
    """

    def __init__(
        self,
        *,
        run: RunDir,
        stage: SupervisedStage,
        held_out: HeldOutDialogues | None = None,
        **parts: Unpack[SFTTrainerParts],
    ) -> None:
        self._normalization: Normalization = stage.normalization
        self._held_out = held_out
        if held_out is not None:
            parts["eval_dataset"] = held_out.dataset
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

    def measure_held_out(self) -> dict[str, float]:
        """Compute the loss of the held-out dialogues, weighted as in training; each counts exactly once."""
        assert self._held_out is not None
        assert isinstance(self.model, nn.Module)
        total = torch.zeros((), dtype=torch.float64)
        for batch in self._held_out.micro_batches():
            inputs = self._prepare_inputs(batch)
            logprobs = self.model(**model_inputs(inputs), supervised_labels=inputs["labels"])
            total += sft_loss(logprobs.double(), samples_of(inputs), 1.0, self._normalization).cpu()
        loss = sum_over_ranks(total[None]) / self._held_out.normalizer(self._normalization)
        return {HELD_OUT_LOSS: loss.item(), HELD_OUT_LEFT_OUT: float(self._held_out.left_out)}


def samples_of(batch: Batch) -> Tensor:
    """Return [T] the sample within the micro-batch that each supervised token belongs to."""
    return sequence_ids(batch)[:, 1:][batch["labels"][:, 1:] != IGNORED]


def training_arguments(
    config: RunConfig, stage: SupervisedStage, output_dir: Path, steps: int, resumed: bool = False
) -> SFTConfig:
    """Translate a stage's settings into TRL's; see `trainer_arguments` and `evaluation_arguments`."""
    arguments = trainer_arguments(config, stage, output_dir, steps)
    if stage.data.packing:  # one item of the dataset is all that a rank does in a step (see `PackedBatches`)
        arguments["per_device_train_batch_size"] = 1
    keys = stage if isinstance(stage, HeldOutKeys) else HeldOutKeys()
    return SFTConfig(
        **arguments,
        **evaluation_arguments(keys, steps, resumed),
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
    # Micro-batches are made as they are needed, so their pixels can be made where the model is.
    renderer = parts.renderer.on(training_device(parts.use_gpu))
    draws = make_draws(parts.mixture, renderer, stage.data.max_length, max_draws)
    numbers = range(parts.steps * world_size()) if stage.data.packing else range(max_draws)
    return _batches_of(draws, renderer, stage, parts.model), Dataset.from_dict({"draw": numbers})


def _batches_of(
    draws: RenderedDraws, renderer: Renderer, stage: SupervisedStage, model: PreTrainedModel
) -> PaddedBatches | PackedBatches:
    """Make the collator of a stage, padding or packing."""
    if not stage.data.packing:
        return PaddedBatches(draws, renderer)
    rope_index = getattr(model.base_model, "get_rope_index", None)  # a text model has none
    return PackedBatches(draws, renderer, rope_index, samples=stage.global_batch_size)


def held_out_dialogues(
    config: RunConfig, stage: SupervisedStage, parts: StageParts
) -> HeldOutDialogues | None:
    """Open a stage's held-out dialogues, if it has any; those that are too long are left out.

    Raises:
        DataError: If all are too long.
    """
    name = stage.eval_dataset if isinstance(stage, HeldOutKeys) else None
    if name is None:
        return None
    renderer, length = parts.renderer.on(training_device(parts.use_gpu)), stage.data.max_length
    draws, chosen, left_out = held_out_draws(
        name,
        config,
        "dialogues",
        renderer,
        length,
        lambda mixture, total: RenderedDraws(mixture, renderer, length, total),
    )
    return HeldOutDialogues(
        draws,
        chosen,
        _batches_of(draws, renderer, stage, parts.model),
        renderer,
        (stage.per_device_batch_size, length),
        left_out,
    )


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
        held_out = held_out_dialogues(config, stage, parts)
        seed = config.seed_of(stage)
        model = parts.model if stage.lora is None else with_lora(parts.model, stage.lora, seed)
        tracker = parts.tracker
        if tracker is not None and isinstance(model, PeftModel):
            adapted_layers(model).write(run.stage_dir(stage.name) / ADAPTERS)
        callbacks: list[TrainerCallback] = [StopAt(job.until or parts.steps)]
        if tracker is not None:
            measured = (HELD_OUT_LOSS, HELD_OUT_LEFT_OUT) if held_out is not None else ()
            callbacks.append(TrackerCallback(tracker, stage.name, (*figures, *measured)))
        arguments = training_arguments(
            config, stage, run.scratch(stage.name), parts.steps, resumed=resume is not None
        )
        trainer = make_trainer(
            run=run,
            stage=stage,
            held_out=held_out,
            model=model,
            args=arguments,
            data_collator=batches,
            train_dataset=draws,
            processing_class=parts.renderer.processor,
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
