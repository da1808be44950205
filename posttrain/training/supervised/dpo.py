"""Direct preference optimisation: TRL's DPOTrainer in Ray Train workers, on image-text and text pairs.

Ours are the rendering, the loss with its normalisation over the global batch, a vision tower that sees each
image once a pair, and the exact measurement of held-out pairs; `trl_stage` has what the stages share.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from posttrain.config import DpoStage, RunConfig
from posttrain.models.lora import adapted_layers, adapters_off, lora_config
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.objectives.dpo import PairLogRatios, dpo_loss, dpo_metrics
from posttrain.rendering.collation import collate, pad_rows, prepare
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.rendering.tools import tool_specs
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import (
    DATA_LEFT_OUT,
    HELD_OUT,
    HELD_OUT_LEFT_OUT,
    HELD_OUT_LOSS,
    HELD_OUT_PREFERRED,
    PREFERENCE_ACCURACIES,
    PREFERENCE_CHOSEN,
    PREFERENCE_MARGINS,
    PREFERENCE_REJECTED,
)
from posttrain.run.record import ADAPTERS
from posttrain.training.core.distributed import rank, sum_over_ranks, world_size
from posttrain.training.core.policy import load_policy
from posttrain.training.core.sharding import reshard, shard
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.batches import Batch, Draws, Row
from posttrain.training.supervised.callbacks import TrackerCallback
from posttrain.training.supervised.held_out import evaluation_arguments, held_out_draws
from posttrain.training.supervised.stage_parts import stage_parts
from posttrain.training.supervised.trl_stage import StageTrainer, trainer_arguments
from posttrain.types import Sample

#: Figures of the pairs, in the order of their rows.
FIGURES = (PREFERENCE_CHOSEN, PREFERENCE_REJECTED, PREFERENCE_MARGINS, PREFERENCE_ACCURACIES)
HELD_OUT_FIGURES = tuple(HELD_OUT + name for name in FIGURES)
EVAL_FIGURES = (HELD_OUT_LOSS, *HELD_OUT_FIGURES, HELD_OUT_PREFERRED, HELD_OUT_LEFT_OUT)


class PairError(ValueError):
    """A row is not a usable preference pair."""


@dataclass
class RenderedPair:
    """Both answers of a row, each after the prompt; their assistant turns are supervised.

    Attributes:
        chosen: The prompt with the preferred answer.
        rejected: The prompt with the rejected answer.
    """

    chosen: Rendered
    rejected: Rendered

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the longer of the two dialogues, whose number `max_length` bounds."""
        return max(self.chosen.token_ids, self.rejected.token_ids, key=len)


class RenderedPairs(Draws[RenderedPair]):
    """The pair of each draw; a pair with an answer that is too long is left out and replaced."""

    def _show(self, dataset: str, sample: Sample) -> RenderedPair:
        """Render a pair.

        Raises:
            PairError: If an answer is missing, or the prompt's tokens depend on what follows it.
        """
        name = f"dataset {dataset}, sample {sample.id}"
        if not (sample.chosen and sample.rejected):
            raise PairError(f"{name}: a preference pair needs both `chosen` and `rejected`")
        specs = tool_specs(sample)
        prompt = self._renderer.render(sample.messages, tools=specs, add_generation_prompt=True)
        length = len(prompt.token_ids)
        answers = []
        for turns in (sample.chosen, sample.rejected):
            whole = self._renderer.render((*sample.messages, *turns), tools=specs)
            if whole.token_ids[:length] != prompt.token_ids:
                raise PairError(f"{name}: the prompt is rendered otherwise where an answer follows it")
            supervised = [False] * length + list(whole.supervised[length:])
            answers.append(dataclasses.replace(whole, supervised=supervised))
        return RenderedPair(*answers)


class PairCollator:
    """A collator that makes one padded batch of the pairs of several draws.

    Args:
        pairs: The pair of each draw.
        renderer: The renderer of the checkpoint being trained.
        look_ahead: Number of the rank's next batches whose images are prepared while the model works.
    """

    def __init__(self, pairs: RenderedPairs, renderer: Renderer, look_ahead: int = 0) -> None:
        self._pairs = pairs
        self._renderer = renderer
        self._look_ahead = look_ahead
        self._prepared = -1  # the last draw whose images are being prepared

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Batch the pairs of the draws.

        Returns:
            The result of `collate` for 2P sequences, the P preferred answers first and then the others, with
            the pixels of each image once (`images_once`); `completion_mask` [2P, L], True on the answers;
            and `left_out`, the number of pairs that were too long.
        """
        found = [self._pairs.sample(row["draw"]) for row in rows]
        items = [pair.chosen for pair, _ in found] + [pair.rejected for pair, _ in found]
        prepare(items, self._renderer)
        self._prepare_after(rows)
        batch = collate(items, self._renderer, images_once=True)
        mask = pad_rows([item.supervised for item in items], False, bool)
        left_out = torch.tensor(sum(number for _, number in found))
        return batch | {"completion_mask": mask, "left_out": left_out}

    def _prepare_after(self, rows: Sequence[Row]) -> None:
        """Have the images of the rank's next batches made ready; ranks take turns at batches of this size."""
        for turn in range(1, self._look_ahead + 1):
            for draw in (row["draw"] + turn * len(rows) * world_size() for row in rows):
                if self._prepared < draw < self._pairs.total:
                    self._prepared = draw
                    # A pair that cannot be used is an error of its own batch.
                    with contextlib.suppress(ValueError):
                        pair, _ = self._pairs.sample(draw)
                        prepare([pair.chosen, pair.rejected], self._renderer)


class DPOTrainerParts(TypedDict, total=False):
    """The arguments of TRL's DPOTrainer, as far as stages give them."""

    model: PreTrainedModel
    ref_model: PreTrainedModel | None
    peft_config: LoraConfig | None
    args: DPOConfig
    data_collator: PairCollator
    train_dataset: Dataset
    eval_dataset: Dataset
    processing_class: PreTrainedTokenizerBase | ProcessorMixin
    callbacks: list[TrainerCallback]


class PreferenceTrainer(StageTrainer, DPOTrainer):
    """DPOTrainer with our pairs, normalisation, optimisers, checkpoints and held-out measurement.

    Args:
        run: The run's directory.
        stage: The stage's settings.
        held_out: Batches the held-out pairs, whose draws are `eval_dataset`.
        held_out_left_out: Number of held-out pairs that were too long.
        **parts: DPOTrainer's own arguments; the models have a supervised head.
    """

    def __init__(
        self,
        *,
        run: RunDir,
        stage: DpoStage,
        held_out: PairCollator | None = None,
        held_out_left_out: int = 0,
        **parts: Unpack[DPOTrainerParts],
    ) -> None:
        self._stage = stage
        self._held_out = held_out
        self._held_out_left_out = held_out_left_out
        self.begin(run, stage)
        super().__init__(**parts)

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Leave the dataset as it is: the collator renders."""
        return dataset

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        """Count the pairs of every micro-batch of every rank, the loss's normaliser; count those left out."""
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in batch_samples:
            sums += torch.tensor([len(batch["input_ids"]) // 2, batch["left_out"]])
        pairs, left_out = sum_over_ranks(sums)
        self.count(DATA_LEFT_OUT, int(left_out))
        return pairs.to(device)

    def batch_loss(self, model: nn.Module, batch: Batch, normalizer: Tensor) -> Tensor:
        """Compute a micro-batch's share of the loss; see `dpo_loss`. Log the pairs' figures."""
        pairs = self.log_ratios(model, batch)
        figures = self._means(dpo_metrics(pairs, self._stage.beta), len(pairs.chosen))
        for name, value in figures.items():
            self._metrics["train"][name].append(value)
        return dpo_loss(pairs, normalizer, self._stage.beta, self._stage.loss_type)

    def log_ratios(self, model: nn.Module, batch: Batch) -> PairLogRatios:
        """Compute how far the policy has moved from the reference on each answer; see `log_probs`."""
        policy, reference, lengths = self.log_probs(model, batch)
        chosen, rejected = (policy - reference).chunk(2)
        return PairLogRatios(chosen, rejected, *lengths.chunk(2))

    def log_probs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the log-probs of the answers.

        Args:
            model: The policy, as the training loop has wrapped it.
            batch: A batch from `PairCollator`; it is not changed.

        Returns:
            [2P] the policy's and [2P] the reference's log-prob of each answer, and [2P] its number of tokens.
        """
        batch = dict(batch)
        mask = batch.pop("completion_mask")
        del batch["left_out"]
        labels = batch["input_ids"].masked_fill(~mask, IGNORED)
        rows = torch.nonzero(labels[:, 1:] != IGNORED)[:, 0]

        def answer_logprobs(model: nn.Module) -> Tensor:
            logprobs = model(**batch, supervised_labels=labels)
            return logprobs.new_zeros(len(labels)).index_add(0, rows, logprobs)

        with torch.no_grad(), self.reference() as reference:
            of_reference = answer_logprobs(reference)
        return answer_logprobs(model), of_reference, mask.sum(1)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """Give the model to compare the policy with: the frozen copy, or itself with its adapters off."""
        if self.ref_model is not None:
            assert isinstance(self.ref_model, nn.Module)
            yield self.ref_model
            reshard(self.ref_model)  # its embeddings and head would stay gathered
            return
        assert isinstance(self.model, nn.Module)
        adapted = self.accelerator.unwrap_model(self.model)
        assert isinstance(adapted, PeftModel)
        with adapters_off(adapted):
            yield self.model

    def measure_held_out(self) -> dict[str, float]:
        """Measure the held-out pairs, each exactly once.

        Every rank takes its share, and all make the same number of forward passes.
        """
        assert self._held_out is not None
        assert isinstance(self.model, nn.Module)
        assert isinstance(self.eval_dataset, Dataset)
        total = len(self.eval_dataset)
        size = self.args.per_device_train_batch_size
        sums: dict[str, Tensor] = dict.fromkeys(("loss", "preferred", *FIGURES), torch.zeros(()))
        for start in range(0, total, size * world_size()):
            own = range(start + rank() * size, min(start + (rank() + 1) * size, total))
            # A rank that has nothing left runs along, since sharded models gather their weights together.
            rows = [self.eval_dataset[place] for place in own or range(1)]
            inputs = self._prepare_inputs(self._held_out(rows))
            policy, reference, lengths = self.log_probs(self.model, inputs)
            if own:
                pairs = PairLogRatios(*(policy - reference).chunk(2), *lengths.chunk(2))
                chosen, rejected = policy.chunk(2)
                found = {"loss": dpo_loss(pairs, 1, self._stage.beta, self._stage.loss_type)}
                found["preferred"] = (chosen > rejected).sum()
                found |= dpo_metrics(pairs, self._stage.beta)
                sums = {name: sums[name] + found[name].double().cpu() for name in sums}
        totals = sum_over_ranks(torch.stack([value.double() for value in sums.values()])).tolist()
        metrics = {HELD_OUT + name: value / total for name, value in zip(sums, totals, strict=True)}
        metrics[HELD_OUT_LEFT_OUT] = float(self._held_out_left_out)
        return metrics

    @staticmethod
    def _means(sums: dict[str, Tensor], pairs: int) -> dict[str, float]:
        """Divide this rank's sums over its pairs, added up over the ranks, by the pairs of all ranks."""
        row = torch.stack([*sums.values()]).double().cpu()
        *totals, count = sum_over_ranks(torch.cat([row, torch.tensor([float(pairs)]).double()])).tolist()
        return {name: total / count for name, total in zip(sums, totals, strict=True)}


def training_arguments(
    config: RunConfig, stage: DpoStage, output_dir: Path, steps: int, resumed: bool = False
) -> DPOConfig:
    """Translate a stage's settings into TRL's; see `trainer_arguments`.

    A stage that is not `resumed` measures its held-out pairs before the first step.
    """
    return DPOConfig(
        **trainer_arguments(config, stage, output_dir, steps),
        **evaluation_arguments(stage, steps, resumed),
        beta=stage.beta,
        loss_type=[stage.loss_type],
        max_length=None,
        disable_dropout=False,  # the models have none; the adapters' is a setting
    )


def frozen_copy(
    config: RunConfig, stage: DpoStage, checkpoint: Path, device: torch.device
) -> PreTrainedModel:
    """Load the reference model of a stage without LoRA, sharded as the policy is."""
    model = load_policy(config.model, checkpoint)
    add_supervised_head(model)
    model.requires_grad_(False).eval()
    shard(model, stage.sharding, device)
    return model


class HeldOut(TypedDict, total=False):
    """The arguments by which a PreferenceTrainer measures held-out pairs."""

    eval_dataset: Dataset
    held_out: PairCollator
    held_out_left_out: int


def held_out_pairs(config: RunConfig, stage: DpoStage, renderer: Renderer) -> HeldOut:
    """Open a stage's held-out pairs, if it has any; those that are too long are left out.

    Raises:
        DataError: If all are too long.
    """
    if stage.eval_dataset is None:
        return {}
    length = stage.data.max_length
    pairs, draws, left_out = held_out_draws(
        stage.eval_dataset,
        config,
        "pairs",
        renderer,
        length,
        lambda mixture, total: RenderedPairs(mixture, renderer, length, total),
    )
    return {
        "eval_dataset": Dataset.from_dict({"draw": draws}),
        "held_out": PairCollator(pairs, renderer),
        "held_out_left_out": left_out,
    }


def dpo_worker(job: StageJob[DpoStage]) -> None:
    """Train in one worker of the stage (see `run_workers`).

    Args:
        job: The stage's work.
    """
    config, stage, run, resume = job.config, job.stage, job.run, job.resume
    with stage_parts(job) as parts:
        add_supervised_head(parts.model)
        draws = parts.steps * stage.global_batch_size
        pairs = RenderedPairs(parts.mixture, parts.renderer, stage.data.max_length, draws)
        figures = (*FIGURES, *EVAL_FIGURES)
        arguments = training_arguments(
            config, stage, run.scratch(stage.name), parts.steps, resumed=resume is not None
        )
        trainer = PreferenceTrainer(
            run=run,
            stage=stage,
            model=parts.model,
            ref_model=None if stage.lora else frozen_copy(config, stage, job.checkpoint, arguments.device),
            peft_config=lora_config(parts.model, stage.lora) if stage.lora else None,
            args=arguments,
            # The trainer takes a step's batches before it works on them, so those of the next step are ahead.
            data_collator=PairCollator(pairs, parts.renderer, 2 * stage.gradient_accumulation_steps),
            train_dataset=Dataset.from_dict({"draw": range(draws)}),
            processing_class=parts.renderer.processor,
            callbacks=[TrackerCallback(parts.tracker, stage.name, figures)] if parts.tracker else [],
            **held_out_pairs(config, stage, parts.renderer),
        )
        if parts.tracker is not None and isinstance(trainer.model, PeftModel):
            adapted_layers(trainer.model).write(run.stage_dir(stage.name) / ADAPTERS)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
