"""Runners of the stages that train in Ray Train workers.

They prepare the stage's data (curate it, or have a teacher answer), then run the workers, and stop them
wherever a checkpoint is to be measured before the stage's end.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from posttrain.config import DatasetConfig, DistillationStage, DpoStage, DrawingStage, SftStage, TrainingStage
from posttrain.data.sources import load_samples
from posttrain.evaluation.pairs import pair_evaluations
from posttrain.rendering.row_checks import KnownRenderer, RenderCheck
from posttrain.run.directory import step_of
from posttrain.run.process import saving_on_sigterm
from posttrain.run.rows import EvaluationRow
from posttrain.run.tracking import showing_progress
from posttrain.training.run_at_work import RunAtWork, standalone, step_in_name
from posttrain.training.shared_data import check_shared_folders
from posttrain.training.stage_curation import curated_datasets
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.ray_workers import run_workers
from posttrain.training.supervised.teacher_answers import taught_datasets

S = TypeVar("S", bound=TrainingStage)
D = TypeVar("D", bound=DrawingStage)


class WorkersRunner(Generic[S]):
    """Runs a stage's workers from step to step.

    Args:
        work: The run.
        stage: The stage.
    """

    #: The function that each worker calls with a StageJob, as `package.module:function`.
    worker: ClassVar[str]

    def __init__(self, work: RunAtWork, stage: S) -> None:
        self.work, self.stage = work, stage

    def run_until(self, make_job: Callable[..., StageJob[S]], stops: Sequence[int], steps: int) -> Path:
        """Run the workers up to each stop and to the end, measuring the checkpoint at each stop.

        Args:
            make_job: Makes the workers' job from `resume` and `until`.
            stops: Steps after which a checkpoint is measured, in order.
            steps: Steps in total.

        Returns:
            The final checkpoint.
        """
        work, name = self.work, self.stage.name
        with showing_progress(work.run, name, steps):
            for until in [*stops, steps]:
                newest = work.run.newest_checkpoint(name)
                if newest is None or step_of(newest) < until:
                    self._run_workers(make_job(resume=newest, until=until))
                    newest = work.run.newest_checkpoint(name)
                if newest is not None and step_of(newest) == until < steps:
                    whole = standalone(newest, work.run.scratch(name) / "merged" / newest.name)
                    work.evaluate(name, whole)
        final = work.run.newest_checkpoint(name)
        assert final is not None
        return final

    def _run_workers(self, job: StageJob[S]) -> None:
        """Run the workers once; on GPUs the engines are ended first, to make room for them."""
        if self.work.use_gpu:
            self.work.services.close_pool()
        if self.work.config.cluster.address:
            check_shared_folders(self.work.run, self.stage)
        with saving_on_sigterm(self.work.run):
            run_workers(
                self.worker,
                job,
                num_workers=self.stage.num_workers,
                use_gpu=self.work.use_gpu,
                scratch=self.work.run.scratch(self.stage.name),
            )

    def measurements(self) -> Sequence[EvaluationRow]:
        """Return nothing: most stages measure nothing by themselves."""
        return []


class DrawingRunner(WorkersRunner[D]):
    """Runs a stage that draws its samples from a mixture."""

    @functools.cached_property
    def check(self) -> RenderCheck:
        """Tell which rows the checkpoint can be shown that the stage starts from."""
        start = self.work.start_of(self.stage)
        assert start is not None
        return RenderCheck(KnownRenderer(start, self.work.config.model), self.stage.use)

    def prepared(self) -> Mapping[str, DatasetConfig]:
        """Prepare the stage's data; return the datasets that replace some of its mixture, by name."""
        return {}

    def run(self) -> Path:
        """Prepare the data, then run the workers to the stage's end; return the final checkpoint."""
        work, stage = self.work, self.stage
        replaced = self.prepared()
        if work.use_gpu:
            work.services.close_pool()  # engines that prepared the data make room for the workers
        datasets = [
            load_samples(replaced.get(name, name), work.config.base_dir, use=stage.use, check=self.check)
            for name in stage.mixture
        ]
        rows = sum(map(len, datasets))
        job = partial(
            StageJob[D],
            config=work.config,
            stage=stage,
            run=work.run,
            start=work.start_of(stage),
            replaced=replaced,
        )
        return self.run_until(job, stage.evaluation_steps(rows), stage.steps_for(rows))


class SftRunner(DrawingRunner[SftStage]):
    """Runs supervised fine-tuning, after a curation if the stage names a recipe."""

    worker = "posttrain.training.supervised.sft:sft_worker"

    def prepared(self) -> Mapping[str, DatasetConfig]:
        """Curate the dataset that the recipe names, or continue an interrupted curation."""
        return curated_datasets(self.stage, self.work)


class DistillationRunner(DrawingRunner[DistillationStage]):
    """Runs off-policy distillation, after the teacher has answered."""

    worker = "posttrain.training.supervised.distillation:distillation_worker"

    def prepared(self) -> Mapping[str, DatasetConfig]:
        """Have the teacher answer the prompts, or continue where it was interrupted."""
        work, stage = self.work, self.stage
        teacher: Path | None = None
        if stage.teacher.stage is not None:
            teacher = work.checkpoints[stage.teacher.stage]
        elif stage.teacher.checkpoint is not None:
            given = Path(stage.teacher.checkpoint)
            teacher = standalone(given, work.run.path / stage.name / "teacher" / "checkpoint-0")
        student = work.start_of(stage)
        assert student is not None
        datasets, summary = taught_datasets(work.config, stage, work.run, student, teacher, work.services)
        print(f"{stage.name}: {summary}", flush=True)
        return datasets


class DpoRunner(DrawingRunner[DpoStage]):
    """Runs direct preference optimisation."""

    worker = "posttrain.training.supervised.dpo:dpo_worker"

    def measurements(self) -> Sequence[EvaluationRow]:
        """Return what the stage measured on its held-out pairs, before and after."""
        work, stage = self.work, self.stage
        if stage.eval_dataset is None:
            return []
        pairs = len(load_samples(stage.eval_dataset, work.config.base_dir, use="pairs", check=self.check))
        start = work.config.origins[stage.name]
        origin = (start, step_in_name(work.checkpoints[start]))
        return pair_evaluations(work.run, stage.name, stage.eval_dataset, pairs, origin)
