"""Direct preference optimisation: TRL's DPOTrainer in Ray Train workers, on image-text and text pairs.

Ours are the rendering, the loss with its normalisation over the global batch, a vision tower that sees each
image once a pair, and held-out pairs measured exactly; `trl_stage` has what the stages share.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from posttrain.config import DpoStage, RunConfig
from posttrain.data.formats import DataError
from posttrain.data.sources import open_mixture
from posttrain.models.lora import lora_config
from posttrain.models.shared_images import IMAGE_INDEX, share_images, sharing_images
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.objectives.dpo import PairLogRatios, dpo_loss, dpo_metrics
from posttrain.rendering.collation import collate, pad_rows
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.rendering.tools import tool_specs
from posttrain.run.metric_names import HELD_OUT_PREFERRED as PREFERRED
from posttrain.training.core.distributed import rank, sum_over_ranks, world_size
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.policy import load_policy
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.batches import RenderedDraws
from posttrain.training.supervised.trl_stage import (
    LEFT_OUT,
    StageTrainer,
    TrackerCallback,
    stage_parts,
    trainer_arguments,
)
from posttrain.types import Sample

#: Figures of the pairs, as TRL calls them.
FIGURES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
#: Held-out pairs with more than `data.max_length` tokens.
EVAL_LEFT_OUT = "eval_left_out"
EVAL_FIGURES = ("eval_loss", *(f"eval_{name}" for name in FIGURES), PREFERRED, EVAL_LEFT_OUT)


class PairError(ValueError):
    """A row that is no usable preference pair."""


@dataclass
class RenderedPair:
    """Both answers of a row, each after the prompt.

    Attributes:
        chosen: With the preferred answer; supervised are its assistant turns.
        rejected: With the other.
    """

    chosen: Rendered
    rejected: Rendered

    @property
    def token_ids(self) -> list[int]:
        """Of the longer one."""
        return max(self.chosen.token_ids, self.rejected.token_ids, key=len)


class RenderedPairs(RenderedDraws):
    """The pair of each draw; one with an answer that is too long is left out and replaced."""

    def _show(self, dataset: str, sample: Sample) -> RenderedPair:
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
    """Draw numbers to a padded batch of pairs.

    Args:
        pairs: The pair of each draw.
        renderer: Of the checkpoint being trained.
    """

    def __init__(self, pairs: RenderedPairs, renderer: Renderer) -> None:
        self._pairs = pairs
        self._renderer = renderer

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """Batch the pairs of `rows`, each `{"draw": i}`.

        Returns:
            What `collate` gives of 2P sequences, the preferred answers first and then the others, with the
            pixels of each image once (`share_images`); `completion_mask` [2P, L], True on the answers; and
            `left_out`, how many pairs were too long.
        """
        found = [self._pairs.sample(row["draw"]) for row in rows]
        items = [pair.chosen for pair, _ in found] + [pair.rejected for pair, _ in found]
        hashes = [image.ref.sha256 for item in items for image in item.images]
        batch = share_images(collate(items, self._renderer), hashes)
        mask = pad_rows([item.supervised for item in items], False, bool)
        left_out = torch.tensor(sum(number for _, number in found))
        return batch | {"completion_mask": mask, "left_out": left_out}


class PreferenceTrainer(StageTrainer, DPOTrainer):
    """DPOTrainer with our pairs, normalisation, checkpoints and held-out measurement.

    Args:
        stage: Its settings.
        eval_collator: Batches the held-out pairs, whose numbers are `eval_dataset`.
        eval_left_out: How many of them were too long.
        **kwargs: StageTrainer's and DPOTrainer's own; the models have a supervised head.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        stage: DpoStage,
        eval_collator: PairCollator | None = None,
        eval_left_out: int = 0,
        **kwargs: Any,
    ) -> None:
        self._stage = stage
        self._eval_collator = eval_collator
        self._eval_left_out = eval_left_out
        super().__init__(stage_name=stage.name, max_skipped_updates=stage.max_skipped_updates, **kwargs)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As it is: the collator renders."""
        return dataset

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Over what trains, which with LoRA exists only once DPOTrainer has put the adapters on."""
        if self.optimizer is None:
            settings = (self._stage.optimizer, self._stage.learning_rate, self._stage.weight_decay)
            self.optimizer = build_optimizer([self.model], *settings)  # pyright: ignore[reportArgumentType]
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The loss's normaliser: the pairs of every micro-batch of every rank; counts what was left out."""
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in batch_samples:
            sums += torch.tensor([len(batch["input_ids"]) // 2, batch["left_out"]])
        pairs, left_out = sum_over_ranks(sums)
        self.count(LEFT_OUT, int(left_out))
        return pairs.to(device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The normalised loss of a micro-batch; DDP averages gradients, so it is scaled by the ranks."""
        pairs = self.log_ratios(model, inputs)
        assert isinstance(num_items_in_batch, Tensor), "the loss needs the normaliser of the whole step"
        figures = self._summed(dpo_metrics(pairs, self._stage.beta), len(pairs.chosen))
        for name, value in figures.items():
            self._metrics["train"][name].append(value)
        loss = dpo_loss(pairs, num_items_in_batch, self._stage.beta, self._stage.loss_type)
        return loss.to(pairs.chosen.dtype) * world_size()

    def log_ratios(self, model: Any, inputs: dict[str, Tensor]) -> PairLogRatios:
        """How far the policy has moved from the reference on each answer; takes what `log_probs` does."""
        policy, reference, lengths = self.log_probs(model, inputs)
        chosen, rejected = (policy - reference).chunk(2)
        return PairLogRatios(chosen, rejected, *lengths.chunk(2))

    def log_probs(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """How likely each answer is.

        Args:
            model: The policy, as the training loop has wrapped it.
            inputs: As `PairCollator` gives them.

        Returns:
            [2P] the policy's and [2P] the reference's log-probs of the answers, and [2P] their tokens.
        """
        batch = dict(inputs)
        image_index = batch.pop(IMAGE_INDEX, None)
        mask = batch.pop("completion_mask")
        del batch["left_out"]
        labels = batch["input_ids"].masked_fill(~mask, IGNORED)
        rows = torch.nonzero(labels[:, 1:] != IGNORED)[:, 0]

        def answer_logprobs(model: Any) -> Tensor:
            with self.accelerator.autocast(), sharing_images(model, image_index):
                logprobs = model(**batch, supervised_labels=labels)
            return logprobs.new_zeros(len(labels)).index_add(0, rows, logprobs)

        with torch.no_grad(), self.reference() as reference:
            of_reference = answer_logprobs(reference)
        return answer_logprobs(model), of_reference, mask.sum(1)

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The model that the policy is compared with: the frozen copy, or itself with its adapters off."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        adapted: Any = self.accelerator.unwrap_model(self.model)
        with adapted.disable_adapter():
            yield self.model

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:  # pyright: ignore
        """Measure the held-out pairs, each exactly once; every rank takes its share, in lock-step."""
        assert self._eval_collator is not None
        assert isinstance(self.model, torch.nn.Module)
        was_training = self.model.training
        self.model.eval()
        total = len(self.eval_dataset)  # pyright: ignore[reportArgumentType]
        size = self.args.per_device_train_batch_size
        sums: dict[str, Tensor] = dict.fromkeys(("loss", "preferred", *FIGURES), torch.zeros(()))
        for start in range(0, total, size * world_size()):
            own = range(start + rank() * size, min(start + (rank() + 1) * size, total))
            # A rank that has nothing left runs along, since sharded models gather their weights together.
            rows: list[Any] = [self.eval_dataset[place] for place in own or range(1)]  # pyright: ignore
            with torch.no_grad():
                inputs = self._prepare_inputs(self._eval_collator(rows))
                policy, reference, lengths = self.log_probs(self.model, inputs)
            if own:
                pairs = PairLogRatios(*(policy - reference).chunk(2), *lengths.chunk(2))
                chosen, rejected = policy.chunk(2)
                found = {"loss": dpo_loss(pairs, 1, self._stage.beta, self._stage.loss_type)}
                found["preferred"] = (chosen > rejected).sum()
                found |= dpo_metrics(pairs, self._stage.beta)
                sums = {name: sums[name] + found[name].double().cpu() for name in sums}
        totals = sum_over_ranks(torch.stack([value.double() for value in sums.values()])).tolist()
        metrics = {f"eval_{name}": value / total for name, value in zip(sums, totals, strict=True)}
        metrics[EVAL_LEFT_OUT] = float(self._eval_left_out)
        self.log(dict(metrics))  # before training mode, in which TRL would add the training figures
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @staticmethod
    def _summed(sums: dict[str, Tensor], pairs: int) -> dict[str, float]:
        """Means over the pairs of all ranks."""
        row = torch.stack([*sums.values()]).double().cpu()
        *totals, count = sum_over_ranks(torch.cat([row, torch.tensor([float(pairs)]).double()])).tolist()
        return {name: total / count for name, total in zip(sums, totals, strict=True)}


def training_arguments(
    config: RunConfig, stage: DpoStage, output_dir: Path, steps: int, resumed: bool = False
) -> DPOConfig:
    """Our keys as TRL's."""
    held_out = stage.eval_dataset is not None
    return DPOConfig(
        **trainer_arguments(config, stage, output_dir, steps),
        beta=stage.beta,
        loss_type=[stage.loss_type],
        max_length=None,
        disable_dropout=False,  # the models have none; the adapters' is a setting
        eval_strategy="steps" if held_out else "no",
        eval_steps=(stage.eval_steps or steps) if held_out else None,
        eval_on_start=held_out and not resumed,
    )


def frozen_copy(config: RunConfig, checkpoint: Path) -> PreTrainedModel:
    """The reference of a stage without LoRA."""
    model = load_policy(config.model, checkpoint)
    add_supervised_head(model)
    return model.requires_grad_(False).eval()


def held_out_pairs(config: RunConfig, stage: DpoStage, renderer: Renderer) -> dict[str, Any]:
    """What PreferenceTrainer takes to measure held-out pairs; each that fits comes once.

    Raises:
        DataError: If all are too long.
    """
    if stage.eval_dataset is None:
        return {}
    mixture = open_mixture({stage.eval_dataset: 1.0}, config.seed, config.base_dir, use="pairs")
    pairs = RenderedPairs(mixture, renderer, stage.data.max_length, len(mixture))
    draws = [draw for draw in range(len(mixture)) if pairs.fits(draw)]
    if not draws:
        raise DataError(
            f"dataset {stage.eval_dataset}: every pair has more tokens than data.max_length ="
            f" {stage.data.max_length}; raise it"
        )
    return {
        "eval_dataset": Dataset.from_dict({"draw": draws}),
        "eval_collator": PairCollator(pairs, renderer),
        "eval_left_out": len(mixture) - len(draws),
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
        trainer = PreferenceTrainer(
            run=run,
            stage=stage,
            model=parts.model,
            ref_model=None if stage.lora else frozen_copy(config, job.checkpoint),
            peft_config=lora_config(parts.model, stage.lora) if stage.lora else None,
            args=training_arguments(
                config, stage, run.scratch(stage.name), parts.steps, resumed=resume is not None
            ),
            data_collator=PairCollator(pairs, parts.renderer),
            train_dataset=Dataset.from_dict({"draw": range(draws)}),
            processing_class=parts.renderer.processor,
            callbacks=[TrackerCallback(parts.tracker, stage.name, figures)] if parts.tracker else [],
            **held_out_pairs(config, stage, parts.renderer),
        )
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
