"""What every worker of a stage opens before it trains: renderer, model, samples in order, tracker."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from posttrain.config import DrawingStage, SupervisedStage
from posttrain.data.curriculum import CurriculumMixture, LengthPhases
from posttrain.data.lengths import TokenCounter
from posttrain.data.mixing import Mixture
from posttrain.data.sources import open_mixture, row_lengths
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.row_checks import RenderCheck
from posttrain.rendering.sample_tokens import SampleTokens
from posttrain.run.directory import step_of
from posttrain.run.tracking import Tracker
from posttrain.training.core.distributed import barrier, rank
from posttrain.training.core.policy import load_policy
from posttrain.training.stage_job import StageJob


@dataclass
class StageParts:
    """What every worker of a stage needs, opened.

    Attributes:
        renderer: The renderer of the checkpoint that the stage starts from.
        model: The model of that checkpoint; of the one that the stage goes on from, if it goes on.
        mixture: The samples to draw from.
        steps: Optimiser steps in total.
        tracker: The run's tracker on rank 0; None on other ranks.
        use_gpu: Whether the worker trains on a GPU.
    """

    renderer: Renderer
    model: PreTrainedModel
    mixture: Mixture
    steps: int
    tracker: Tracker | None
    use_gpu: bool = False


@contextmanager
def stage_parts(job: StageJob[DrawingStage]) -> Iterator[StageParts]:
    """Open what a worker of a stage needs, and close the tracker afterwards."""
    config, stage = job.config, job.stage
    renderer = Renderer.from_config(job.checkpoint, config.model)
    mixture = stage_mixture(job, renderer)
    # Adapters go around the weights that the stage started from; the trainer reads them.
    weights = job.checkpoint if stage.lora or job.resume is None else job.resume
    parts = StageParts(
        renderer=renderer,
        mixture=mixture,
        model=load_policy(config.model, weights, stage.lora.quantization if stage.lora else None),
        steps=stage.steps_for(len(mixture)),
        tracker=Tracker(job.run, config.trackers) if rank() == 0 else None,
        use_gpu=config.use_gpu,
    )
    if parts.tracker is not None:
        parts.tracker.rewind(stage.name, step_of(job.resume) if job.resume else -1)
        parts.tracker.start(stage.name, parts.steps)
    barrier()  # a rank whose disk is slow has opened all of it, too: what follows has a deadline
    yield parts
    if parts.tracker is not None:
        parts.tracker.close()


def stage_mixture(job: StageJob[DrawingStage], renderer: Renderer) -> Mixture:
    """Open a stage's datasets as one mixture, in the order of its curriculum if it has one."""
    config, stage = job.config, job.stage
    mixture = open_mixture(
        stage.mixture,
        config.seed_of(stage),
        config.base_dir,
        counter=SampleTokens(renderer) if stage.by_tokens else None,
        replaced=job.replaced,
        use=stage.use,
        check=RenderCheck(renderer, stage.use),
    )
    if isinstance(stage, SupervisedStage) and stage.data.curriculum is not None:
        return curriculum_mixture(mixture, stage, config.seed_of(stage), SampleTokens(renderer))
    return mixture


def curriculum_mixture(
    mixture: Mixture, stage: SupervisedStage, seed: int, counter: TokenCounter, cache_dir: Path | None = None
) -> CurriculumMixture:
    """Put a mixture into the order of a stage's curriculum: short samples first, then all lengths."""
    data = stage.data
    assert data.curriculum is not None
    phases = LengthPhases(
        short_length=data.curriculum.short_length,
        max_length=data.max_length,
        long_share=data.curriculum.long_share,
        second_from=stage.long_samples_from(len(mixture)),
    )
    lengths = row_lengths(mixture.datasets, counter, cache_dir)
    return CurriculumMixture(mixture, data.mixture, seed, lengths, phases, data.mixture_by == "tokens")
