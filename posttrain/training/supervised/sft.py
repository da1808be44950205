"""Supervised fine-tuning: TRL's SFTTrainer in Ray Train workers, with the recipe's data and loss.

Ours are the loss and its normalisation over the global batch; `trl_stage` has what the stages share.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from posttrain.config import RunConfig, SupervisedStage
from posttrain.models.lora import with_lora
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.objectives.sft import Normalization, sft_loss, sft_normalizer
from posttrain.training.core.distributed import sum_over_ranks, world_size
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.batches import PackedBatches, PaddedBatches, RenderedDraws, sequence_ids
from posttrain.training.supervised.trl_stage import (
    LEFT_OUT,
    StageParts,
    StageTrainer,
    StopAt,
    TrackerCallback,
    stage_parts,
    trainer_arguments,
)


class SupervisedTrainer(StageTrainer, SFTTrainer):
    """SFTTrainer with our sample order, normalisation and checkpoints.

    Args:
        normalization: `sqrt`, `token` or `sample` (see `posttrain.objectives.sft`).
        make_optimizer: Makes the optimiser of the model; transformers' own if None.
        **kwargs: StageTrainer's and SFTTrainer's own.
    """

    #: Whether `compute_loss` has counted every micro-batch of the step; else transformers divides by them.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        normalization: Normalization,
        make_optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        **kwargs: Any,
    ) -> None:
        self._normalization: Normalization = normalization
        self._make_optimizer = make_optimizer
        super().__init__(**kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Ours, which FSDP wants made no sooner."""
        if self.optimizer is None and self._make_optimizer is not None:
            self.optimizer = self._make_optimizer(self.model)
        return super().create_optimizer(model)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor:
        """The loss's normaliser over every micro-batch of every rank; counts what was left out as well."""
        sums = torch.zeros(2, dtype=torch.float64)
        for share in batch_samples:
            sums[0] += sft_normalizer(share["supervised"].cpu(), self._normalization)
            sums[1] += share["left_out"].cpu()
        normalizer, left_out = sum_over_ranks(sums)
        self.count(LEFT_OUT, int(left_out))
        # At least 1 as soon as one token is supervised; where none is, the loss is 0 and not 0/0.
        return normalizer.clamp(min=1).to(device)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Forward and backward of every micro-batch; ranks exchange gradients after the last."""
        *others, last = inputs["micro_batches"]
        losses = []
        for make in others:
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, make(), num_items_in_batch))
        losses.append(super().training_step(model, last(), num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The normalised loss of a micro-batch; DDP averages gradients, so it is scaled by the ranks."""
        arguments = dict(inputs)
        labels = arguments.pop("labels")
        logprobs = model(**arguments, supervised_labels=labels)
        samples = self.samples_of(inputs)
        assert isinstance(num_items_in_batch, Tensor), "the loss needs the normaliser of the whole step"
        loss = sft_loss(logprobs, samples, num_items_in_batch, self._normalization) * world_size()
        return (loss, logprobs) if return_outputs else loss

    @staticmethod
    def samples_of(inputs: dict[str, Tensor]) -> Tensor:
        """[T] the sample within the micro-batch that each supervised token belongs to."""
        return sequence_ids(inputs)[:, 1:][inputs["labels"][:, 1:] != IGNORED]


def training_arguments(config: RunConfig, stage: SupervisedStage, output_dir: Path, steps: int) -> SFTConfig:
    """Our keys as TRL's."""
    arguments = trainer_arguments(config, stage, output_dir, steps)
    if stage.data.packing:  # one item of the dataset is all that a rank does in a step (see `PackedBatches`)
        arguments |= {"per_device_train_batch_size": 1}
    return SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})


def sft_batches(
    stage: SupervisedStage,
    parts: StageParts,
    max_draws: int,
    make_draws: Callable[..., RenderedDraws] = RenderedDraws,
) -> tuple[PaddedBatches | PackedBatches, Dataset]:
    """What turns draws into batches, and the numbers that the trainer hands to it."""
    length = stage.data.max_length
    draws = make_draws(parts.mixture, parts.renderer, length, max_draws)
    if not stage.data.packing:
        return PaddedBatches(draws, parts.renderer), Dataset.from_dict({"draw": range(max_draws)})
    rope_index = getattr(parts.model.base_model, "get_rope_index", None)  # a text model has none
    batches = PackedBatches(draws, parts.renderer, rope_index, samples=stage.global_batch_size)
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
        figures: More figures that the trainer logs.
    """
    config, stage, run, resume = job.config, job.stage, job.run, job.resume
    with stage_parts(job) as parts:
        batches, draws = sft_batches(stage, parts, parts.steps * stage.global_batch_size, make_draws)
        add_supervised_head(parts.model)
        if stage.data.packing:
            use_packed_attention(parts.model)
        model: Any = parts.model if stage.lora is None else with_lora(parts.model, stage.lora, config.seed)
        tracker = parts.tracker
        callbacks: list[TrainerCallback] = [StopAt(job.until or parts.steps)]
        if tracker is not None:
            callbacks.append(TrackerCallback(tracker, stage.name, figures))
        trainer = make_trainer(
            normalization=stage.normalization,
            run=run,
            stage_name=stage.name,
            max_skipped_updates=stage.max_skipped_updates,
            model=model,
            args=training_arguments(config, stage, run.scratch(stage.name), parts.steps),
            data_collator=batches,
            train_dataset=draws,
            processing_class=parts.renderer.processor,
            make_optimizer=lambda model: build_optimizer(
                [model], stage.optimizer, stage.learning_rate, stage.weight_decay
            ),
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
