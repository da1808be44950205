"""The second half of off-policy distillation: the student learns from the teacher's answers.

Without log-probs of the teacher it is supervised fine-tuning on the answers. With them, each answer's tokens
are used as the teacher sampled them, because its log-probs are of these and of no others.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from posttrain.config import DistillationStage, RunConfig
from posttrain.objectives.distill import TopLogprobs, distillation_loss, top_k_kl
from posttrain.rendering.rendering import Rendered
from posttrain.rendering.tools import tool_specs
from posttrain.training.core.distributed import sum_over_ranks, world_size
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.answer_log import read_top_tokens
from posttrain.training.supervised.batches import RenderedDraws
from posttrain.training.supervised.sft import SupervisedTrainer, sft_worker
from posttrain.training.supervised.teacher_answers import COLUMN
from posttrain.types import Sample

#: Metric: forward KL divergence from the teacher to the student, a token, over top_k and the rest.
KL = "kl/teacher"


@dataclass
class TaughtSample(Rendered):
    """A prompt with the tokens of the teacher's answer, and where their log-probs are.

    Attributes:
        folder: Of the answers.
        shard: File of the log-probs.
        start: Number of the first.
        count: Tokens of the answer.
    """

    folder: Path = field(kw_only=True)
    shard: str = field(kw_only=True)
    start: int = field(kw_only=True)
    count: int = field(kw_only=True)


class TaughtDraws(RenderedDraws):
    """The sample of each draw: the prompt as rendered, the answer as sampled.

    Args:
        *arguments: As `RenderedDraws` takes them.
        vocabulary: Number of tokens that the student knows.
    """

    def __init__(self, *arguments: Any, vocabulary: int) -> None:
        super().__init__(*arguments)
        self._vocabulary = vocabulary

    def targets(self, items: Sequence[TaughtSample]) -> dict[str, Tensor]:
        """What the teacher thought likely in the place of each token of the answers.

        A teacher may have more tokens than it has names for, as a larger model of a family does that pads
        its matrix further; the student has none of these, and they count among the rest.

        Returns:
            `candidates` [T, K] token ids and `teacher_logprobs` [T, K].
        """
        tops = [read_top_tokens(each.folder, each.shard, each.start, each.count) for each in items]
        ids = np.concatenate([top.ids for top in tops])
        logprobs = np.concatenate([top.logprobs for top in tops])
        unknown = ids >= self._vocabulary
        return {
            "candidates": torch.from_numpy(np.where(unknown, ids[:, :1], ids)).long(),
            "teacher_logprobs": torch.from_numpy(np.where(unknown, -np.inf, logprobs)),
        }

    def _show(self, dataset: str, sample: Sample) -> TaughtSample:
        about, tools = sample.columns[COLUMN], tool_specs(sample)
        prompt = self._renderer.render(sample.messages[:-1], tools=tools, add_generation_prompt=True)
        answer = list(about["token_ids"])
        parts = vars(prompt) | {
            "token_ids": prompt.token_ids + answer,
            "supervised": [False] * len(prompt.token_ids) + [True] * len(answer),
        }
        folder = self._mixture.datasets[dataset].path.parent
        return TaughtSample(
            **parts, folder=folder, shard=about["shard"], start=about["start"], count=len(answer)
        )


class DistillationTrainer(SupervisedTrainer):
    """SupervisedTrainer whose loss has the divergence from the teacher in it.

    Args:
        top_k_weight: Share of the divergence in each token's loss.
        **kwargs: SupervisedTrainer's own.
    """

    def __init__(self, *, top_k_weight: float, **kwargs: Any) -> None:
        self._top_k_weight = top_k_weight
        super().__init__(**kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The normalised loss of a micro-batch; DDP averages gradients, so it is scaled by the ranks."""
        arguments = dict(inputs)
        labels, teacher = arguments.pop("labels"), arguments.pop("teacher_logprobs")
        logprobs, candidates, rest = model(**arguments, supervised_labels=labels)
        divergences = top_k_kl(TopLogprobs(teacher.to(candidates.dtype), candidates, rest))
        sums = [divergences.detach().double().sum().item(), float(len(divergences))]
        total, tokens = sum_over_ranks(torch.tensor(sums, dtype=torch.float64)).tolist()
        self._metrics["train"][KL].append(total / max(1.0, tokens))
        assert isinstance(num_items_in_batch, Tensor), "the loss needs the normaliser of the whole step"
        loss = distillation_loss(
            logprobs,
            divergences,
            self.samples_of(inputs),
            num_items_in_batch,
            self._normalization,
            self._top_k_weight,
        )
        loss = loss * world_size()
        return (loss, logprobs) if return_outputs else loss


def distillation_worker(job: StageJob[DistillationStage]) -> None:
    """Train in one worker of the stage (see `run_workers`).

    Args:
        job: The stage's work; what is `replaced` are the prompts, by datasets with the teacher's answers.
    """
    stage = job.stage
    if stage.text_only:
        job = dataclasses.replace(job, config=with_language_model_alone(job.config, job.checkpoint))
    if not stage.loss.top_k:
        sft_worker(job)
        return
    model = AutoConfig.from_pretrained(str(job.checkpoint), trust_remote_code=False)
    sft_worker(
        job,
        functools.partial(TaughtDraws, vocabulary=model.get_text_config().vocab_size),
        functools.partial(DistillationTrainer, top_k_weight=stage.loss.top_k_weight),
        (KL,),
    )


def with_language_model_alone(config: RunConfig, checkpoint: Path) -> RunConfig:
    """The settings of a run whose vision tower and merger, if there are any, stay fixed."""
    if config.model.family_of(checkpoint) == "text":
        return config
    frozen = {"freeze_vision_tower": True, "freeze_merger": True}
    return config.model_copy(update={"model": config.model.model_copy(update=frozen)})
