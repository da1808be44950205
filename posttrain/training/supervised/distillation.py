"""The second half of off-policy distillation: the student learns from the teacher's answers.

Without log-probs of the teacher it is supervised fine-tuning on the answers. With them, the tokens of each
answer are those that the teacher sampled, and not the text tokenized again, because the log-probs belong to
these tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from posttrain.config import DistillationStage, RunConfig
from posttrain.data.mixing import Mixture
from posttrain.objectives.distill import TopLogprobs, distillation_loss, top_k_kl
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.rendering.tools import tool_specs
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import KL_TEACHER
from posttrain.training.core.distributed import sum_over_ranks
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.answer_log import read_top_tokens
from posttrain.training.supervised.batches import Batch, RenderedDraws, model_inputs
from posttrain.training.supervised.sft import SFTTrainerParts, SupervisedTrainer, samples_of, sft_worker
from posttrain.training.supervised.teacher_answers import COLUMN
from posttrain.types import Sample


@dataclass
class TaughtSample(Rendered):
    """A prompt with the tokens of the teacher's answer, and where their log-probs are.

    Attributes:
        folder: The folder of the answers.
        shard: File of the log-probs.
        start: Place of the first of them in the file.
        count: Number of tokens of the answer.
    """

    folder: Path = field(kw_only=True)
    shard: str = field(kw_only=True)
    start: int = field(kw_only=True)
    count: int = field(kw_only=True)


class TaughtDraws(RenderedDraws):
    """The sample of each draw: the prompt as rendered, the answer as sampled.

    Args:
        mixture, renderer, max_length, draws: As in `RenderedDraws`.
        vocabulary: Number of tokens that the student knows.
    """

    def __init__(
        self, mixture: Mixture, renderer: Renderer, max_length: int, draws: int, *, vocabulary: int
    ) -> None:
        super().__init__(mixture, renderer, max_length, draws)
        self._vocabulary = vocabulary

    def targets(self, items: Sequence[Rendered]) -> Batch:
        """Read the teacher's likeliest tokens at the place of each token of the answers.

        A teacher's head may have more rows than there are tokens, because larger models of a family pad it
        further. The student has no such tokens; they count among the rest.

        Returns:
            `candidates` [T, K] token ids and `teacher_logprobs` [T, K].
        """
        taught = [item for item in items if isinstance(item, TaughtSample)]
        tops = [read_top_tokens(each.folder, each.shard, each.start, each.count) for each in taught]
        ids = np.concatenate([top.ids for top in tops])
        logprobs = np.concatenate([top.logprobs for top in tops])
        unknown = ids >= self._vocabulary
        return {
            "candidates": torch.from_numpy(np.where(unknown, ids[:, :1], ids)).long(),
            "teacher_logprobs": torch.from_numpy(np.where(unknown, -np.inf, logprobs)),
        }

    def _show(self, dataset: str, sample: Sample) -> TaughtSample:
        """Render the prompt, and append the answer's tokens."""
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
    """SupervisedTrainer whose loss is a mix of likelihood and the divergence from the teacher.

    Args:
        run: The run's directory.
        stage: The stage's settings.
        **parts: SFTTrainer's own arguments; the model has a supervised head.
    """

    def __init__(self, *, run: RunDir, stage: DistillationStage, **parts: Unpack[SFTTrainerParts]) -> None:
        self._top_k_weight = stage.loss.top_k_weight
        super().__init__(run=run, stage=stage, **parts)

    def batch_loss(self, model: nn.Module, batch: Batch, normalizer: Tensor) -> Tensor:
        """Compute a micro-batch's share of the loss; see `distillation_loss`. Log the divergence."""
        arguments = model_inputs(batch)
        teacher = arguments.pop("teacher_logprobs")
        logprobs, candidates, rest = model(**arguments, supervised_labels=batch["labels"])
        divergences = top_k_kl(TopLogprobs(teacher.to(candidates.dtype), candidates, rest))
        sums = [divergences.detach().double().sum().item(), float(len(divergences))]
        total, tokens = sum_over_ranks(torch.tensor(sums, dtype=torch.float64)).tolist()
        self._metrics["train"][KL_TEACHER].append(total / max(1.0, tokens))
        return distillation_loss(
            logprobs, divergences, samples_of(batch), normalizer, self._normalization, self._top_k_weight
        )


def distillation_worker(job: StageJob[DistillationStage]) -> None:
    """Train in one worker of the stage (see `run_workers`).

    Args:
        job: The stage's work; its `replaced` datasets are the prompts with the teacher's answers.
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
        DistillationTrainer,
        (KL_TEACHER,),
    )


def with_language_model_alone(config: RunConfig, checkpoint: Path) -> RunConfig:
    """Return a run's settings with vision tower and merger frozen, if the model has any."""
    if config.model.family_of(checkpoint) == "text":
        return config
    frozen = {"freeze_vision_tower": True, "freeze_merger": True}
    return config.model_copy(update={"model": config.model.model_copy(update=frozen)})
