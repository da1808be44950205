"""Direct preference optimisation: TRL's DPOTrainer in Ray Train workers, on image-text and text pairs.

Ours are the rendering, the loss with its normalisation over the global batch, a vision tower that sees each
image once a pair, and held-out pairs measured exactly; `trl_stage` has what the stages share.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from posttrain.config import DpoStage, RunConfig
from posttrain.data.collation import collate, pad_rows
from posttrain.data.rendering import Rendered, Renderer
from posttrain.data.sample_tokens import tool_specs
from posttrain.data.sources import Mixture, open_mixture
from posttrain.models.lora import lora_config
from posttrain.models.shared_images import IMAGE_INDEX, share_images, sharing_images
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.objectives.dpo import PairLogRatios, dpo_loss, dpo_metrics
from posttrain.run_dir import RunDir
from posttrain.training.distributed import rank, sum_over_ranks, world_size
from posttrain.training.optimizers import build_optimizer
from posttrain.training.trl_stage import (
    StageTrainer,
    TrackerCallback,
    load_stage_model,
    stage_parts,
    trainer_arguments,
)

#: Rendered pairs kept by a worker: tokens only, a few kB each; pixels have their own bounded cache.
PAIRS_KEPT = 8192
#: Figures of the pairs, as TRL calls them.
FIGURES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
EVAL_FIGURES = ("eval_loss", *(f"eval_{name}" for name in FIGURES))


class PairError(ValueError):
    """A row that is no usable preference pair."""


class PairCollator:
    """Draw numbers to a padded batch of pairs.

    Args:
        mixture: Which pair each draw is.
        renderer: Of the checkpoint being trained.
        max_length: Most tokens of a prompt with one of its answers.
    """

    def __init__(self, mixture: Mixture, renderer: Renderer, max_length: int) -> None:
        self._mixture = mixture
        self._renderer = renderer
        self._max_length = max_length
        self._render = functools.lru_cache(maxsize=PAIRS_KEPT)(self._render_pair)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """Batch the pairs of `rows`, each `{"draw": i}`.

        Returns:
            What `collate` gives of 2P sequences, the preferred answers first and then the others, with the
            pixels of each image once (`share_images`); and `completion_mask` [2P, L], True on the answers.
        """
        pairs = [self._render(*self._mixture.index(row["draw"])) for row in rows]
        items = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
        hashes = [image.ref.sha256 for item in items for image in item.images]
        batch = share_images(collate(items, self._renderer), hashes)
        return batch | {"completion_mask": pad_rows([item.supervised for item in items], False, bool)}

    def _render_pair(self, dataset: str, row: int) -> tuple[Rendered, Rendered]:
        """Both answers of a row after their prompt; supervised are the assistant turns of the answers."""
        sample = self._mixture.datasets[dataset][row]
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
            if len(whole.token_ids) > self._max_length:
                raise PairError(
                    f"{name}: {len(whole.token_ids)} tokens are more than data.max_length ="
                    f" {self._max_length}; raise it, or filter the dataset"
                )
            supervised = [False] * length + list(whole.supervised[length:])
            answers.append(dataclasses.replace(whole, supervised=supervised))
        return answers[0], answers[1]


class PreferenceTrainer(StageTrainer, DPOTrainer):
    """DPOTrainer with our pairs, normalisation, checkpoints and held-out measurement.

    Args:
        stage: Its settings.
        eval_collator: Batches the held-out pairs, whose numbers are `eval_dataset`.
        **kwargs: StageTrainer's and DPOTrainer's own; the models have a supervised head.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, stage: DpoStage, eval_collator: PairCollator | None = None, **kwargs: Any) -> None:
        self._stage = stage
        self._eval_collator = eval_collator
        super().__init__(stage_name=stage.name, **kwargs)

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
        """The loss's normaliser: the pairs of every micro-batch of every rank."""
        pairs = sum(len(batch["input_ids"]) // 2 for batch in batch_samples)
        return sum_over_ranks(torch.tensor(float(pairs), dtype=torch.float64)).to(device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """The normalised loss of a micro-batch; DDP averages gradients, so it is scaled by the ranks."""
        pairs = self.log_ratios(model, inputs)
        normalizer = num_items_in_batch
        if normalizer is None:
            normalizer = self._get_num_items_in_batch([inputs], pairs.chosen.device)
        figures = self._summed(dpo_metrics(pairs, self._stage.beta), len(pairs.chosen))
        for name, value in figures.items():
            self._metrics["train"][name].append(value)
        loss = dpo_loss(pairs, normalizer, self._stage.beta, self._stage.loss_type)
        return loss.to(pairs.chosen.dtype) * world_size()

    def log_ratios(self, model: Any, inputs: dict[str, Tensor]) -> PairLogRatios:
        """How far the policy has moved from the reference on each answer.

        Args:
            model: The policy, as the training loop has wrapped it.
            inputs: As `PairCollator` gives them.
        """
        batch = dict(inputs)
        image_index = batch.pop(IMAGE_INDEX, None)
        mask = batch.pop("completion_mask")
        labels = batch["input_ids"].masked_fill(~mask, IGNORED)
        rows = torch.nonzero(labels[:, 1:] != IGNORED)[:, 0]

        def answer_logprobs(model: Any) -> Tensor:
            with self.accelerator.autocast(), sharing_images(model, image_index):
                logprobs = model(**batch, supervised_labels=labels)
            return logprobs.new_zeros(len(labels)).index_add(0, rows, logprobs)

        with torch.no_grad(), self.reference() as reference:
            of_reference = answer_logprobs(reference)
        chosen, rejected = (answer_logprobs(model) - of_reference).chunk(2)
        return PairLogRatios(chosen, rejected, *mask.sum(1).chunk(2))

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
        sums: dict[str, Tensor] = dict.fromkeys(("loss", *FIGURES), torch.zeros(()))
        for start in range(0, total, size * world_size()):
            own = range(start + rank() * size, min(start + (rank() + 1) * size, total))
            # A rank that has nothing left runs along, since sharded models gather their weights together.
            rows = [{"draw": draw} for draw in own or range(1)]
            with torch.no_grad():
                pairs = self.log_ratios(self.model, self._prepare_inputs(self._eval_collator(rows)))
            if own:
                found = {"loss": dpo_loss(pairs, 1, self._stage.beta, self._stage.loss_type)}
                found |= dpo_metrics(pairs, self._stage.beta)
                sums = {name: sums[name] + found[name].double().cpu() for name in sums}
        totals = sum_over_ranks(torch.stack([value.double() for value in sums.values()])).tolist()
        metrics = {f"eval_{name}": value / total for name, value in zip(sums, totals, strict=True)}
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
    model = load_stage_model(config, checkpoint)
    add_supervised_head(model)
    return model.requires_grad_(False).eval()


def dpo_worker(arguments: dict[str, Any]) -> None:
    """What each worker of the stage runs (see `run_workers`).

    Args:
        arguments: As `stage_parts` takes them.
    """
    config: RunConfig = arguments["config"]
    stage: DpoStage = arguments["stage"]
    run: RunDir = arguments["run"]
    resume: Path | None = arguments["resume"]
    with stage_parts(arguments) as parts:
        add_supervised_head(parts.model)
        collator = PairCollator(parts.mixture, parts.renderer, stage.data.max_length)
        draws = parts.steps * stage.global_batch_size
        held_out: dict[str, Any] = {}
        if stage.eval_dataset is not None:
            pairs = open_mixture({stage.eval_dataset: 1.0}, config.seed, config.base_dir)
            held_out = {
                "eval_dataset": Dataset.from_dict({"draw": range(len(pairs))}),
                "eval_collator": PairCollator(pairs, parts.renderer, stage.data.max_length),
            }
        figures = (*FIGURES, *EVAL_FIGURES)
        trainer = PreferenceTrainer(
            run=run,
            stage=stage,
            model=parts.model,
            ref_model=None if stage.lora else frozen_copy(config, arguments["checkpoint"]),
            peft_config=lora_config(parts.model, stage.lora) if stage.lora else None,
            args=training_arguments(
                config, stage, run.scratch(stage.name), parts.steps, resumed=resume is not None
            ),
            data_collator=collator,
            train_dataset=Dataset.from_dict({"draw": range(draws)}),
            processing_class=parts.renderer.processor,
            callbacks=[TrackerCallback(parts.tracker, stage.name, figures)] if parts.tracker else [],
            **held_out,
        )
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
