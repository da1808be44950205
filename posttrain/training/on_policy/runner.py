"""An on-policy stage from its start to its final checkpoint: who takes part, and how they begin."""

from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

from posttrain.config import OnPolicyStage
from posttrain.inference.pool import InferencePool
from posttrain.inference.worker import InferenceWorker
from posttrain.rollout.token_figures import TokenBytes
from posttrain.run.directory import step_of
from posttrain.run.process import saving_on_sigterm
from posttrain.run.rows import EvaluationRow
from posttrain.run.tracking import Tracker
from posttrain.training.on_policy.controller import Controller, Crew
from posttrain.training.on_policy.frozen_policy import Beside
from posttrain.training.on_policy.judge_agreement import judged_pairs
from posttrain.training.on_policy.learner import PolicyMismatch
from posttrain.training.on_policy.learner_group import LearnerGroup
from posttrain.training.on_policy.pacing import Pacing, StalenessError, run_paced
from posttrain.training.on_policy.prompts import stage_prompts
from posttrain.training.on_policy.proof import proof_sequences
from posttrain.training.on_policy.publishing import Publisher
from posttrain.training.on_policy.read_as_played import ReadAsPlayed
from posttrain.training.on_policy.teachers import find_teacher, read_sequences, reading_pool, trained_model
from posttrain.training.on_policy.turns import engines_asleep
from posttrain.training.run_at_work import RunAtWork
from posttrain.training.stage_curation import curated_datasets


class OnPolicyRunner:
    """Runs an on-policy stage: starts the learners, publishes their weights after each step, saves and stops.

    Args:
        work: The run.
        stage: The stage's settings.
    """

    def __init__(self, work: RunAtWork, stage: OnPolicyStage) -> None:
        self._work, self._stage = work, stage

    def measurements(self) -> Sequence[EvaluationRow]:
        """Return nothing: such a stage measures nothing by itself."""
        return []

    def run(self) -> Path:
        """Train from the stage's newest checkpoint, or from its start; return the final checkpoint."""
        work, stage = self._work, self._stage
        origin = work.start_of(stage)
        assert origin is not None
        teacher = find_teacher(work, stage, origin)
        with reading_pool(work, stage, teacher) as readers:
            return self._train(origin, teacher, readers)

    def _train(self, origin: Path, teacher: Path | None, readers: InferencePool | None) -> Path:
        """Train; the teacher is in the learners unless there are engines of its own."""
        work, stage = self._work, self._stage
        newest = work.run.newest_checkpoint(stage.name)
        done = step_of(newest) if newest else 0
        start, adapters = newest or origin, stage.adapter_rank(work.use_gpu) > 0
        curated = curated_datasets(stage, work, playing=stage)
        pool = work.services.pool_with(origin if stage.lora is not None else start, stage.rollout)
        beside = Beside(origin, teacher if readers is None else None)
        with (
            closing(Tracker(work.run, work.config.trackers)) as tracker,
            closing(self._start_learners(start, beside)) as learners,
        ):
            publisher = Publisher(
                learners,
                pool,
                stage,
                work.config.model.dtype,
                use_gpu=work.use_gpu,
                shared=work.shares_gpus,
                adapters_of=origin if adapters else None,
            )
            self._record_places(learners, pool, readers)
            tracker.rewind(stage.name, done)
            tracker.start(stage.name, stage.max_steps)
            pacing = Pacing(stage.rollout.max_staleness, done, stage.max_steps)
            prompts = stage_prompts(work.config, stage, pool.prompt_tokens, start, curated)
            learning = partial(engines_asleep, pool, learners) if work.shares_gpus else nullcontext
            sizes = TokenBytes.of_checkpoint(start)
            playing = pool if readers is None else ReadAsPlayed(pool, readers, stage.teacher_top_k)
            crew = Crew(playing, learners, publisher, work.services.next_version, learning, sizes)
            judged = judged_pairs(work.plugins, stage.tasks, Path(work.config.base_dir))
            controller = Controller(stage, work.run, crew, prompts, pacing, tracker, judged)
            with closing(controller), saving_on_sigterm(work.run):
                if pacing.next_step is not None:
                    first = prompts.of_step(pacing.next_step).groups
                    sequences = learners.prompt_sequences([group.sample for group in first])
                    publisher.prove_by(sequences)
                    proof = proof_sequences(sequences)
                    learners.check_teacher(proof, read_sequences(readers, proof, stage.teacher_top_k))
                if stage.lora is not None:
                    publisher.canary(work.services.next_version())
                run_paced(pacing, controller, (PolicyMismatch, StalenessError))
                controller.save()
        final = work.run.newest_checkpoint(stage.name)
        assert final is not None
        return final

    def _start_learners(self, start: Path, beside: Beside) -> LearnerGroup:
        """Start the learners from a checkpoint, which is the stage's own unless it is the stage's origin."""
        work, stage = self._work, self._stage
        return LearnerGroup(
            *(trained_model(work.config.model, stage, start), stage, start),
            resume=start != beside.origin,
            use_gpu=work.use_gpu,
            placement=work.services.placement,
            seed=work.config.seed_of(stage),
            beside=beside,
        )

    def _record_places(
        self, learners: LearnerGroup, pool: InferencePool, readers: InferencePool | None
    ) -> None:
        """Record where each of them runs."""
        places = {"learners": learners.places(), "engines": [*pool.on_each(InferenceWorker.place).values()]}
        if readers is not None:
            places["teacher"] = [*readers.on_each(InferenceWorker.place).values()]
        self._work.record_places(self._stage, **places)
