"""RL: the controller's loop of rollout, reward, update and publish.

    for each step:
        groups  = the next prompts of every task, in their fixed ratio
        rollout = the engines' episodes, scored while others still run
        update  = the learners check the engines' log-probs, then learn from their mini-batches
        publish = the new weights to every engine, caches cleared

The prompts and random numbers of a step depend on the seed and the step alone, so a resumed run goes on with
those of an undisturbed one; where arithmetic repeats (on a CPU, in float32) it also ends as that would have.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from posttrain.config import RlStage, RunConfig
from posttrain.data.mixing import Mixture
from posttrain.data.renderable import RowCheck
from posttrain.data.sources import load_samples
from posttrain.rendering.row_checks import KnownRenderer, RenderCheck
from posttrain.rollout.episode import Limits
from posttrain.rollout.play import RolloutPool
from posttrain.rollout.records import write_trajectories
from posttrain.run.directory import RunDir, step_of
from posttrain.run.metric_names import (
    ADVANTAGE_DROPPED_GROUPS,
    ADVANTAGE_ZERO_GROUPS,
    DATA_LEFT_OUT,
    EPISODE_TOKENS,
    EPISODE_TOOL_CALLS,
    EPISODE_TRUNCATED,
    EPISODE_TURNS,
    PUBLISH_REPEATED,
    REWARD,
    REWARD_ERRORS,
    REWARD_MEAN,
    TIME_REWARD,
    TIME_ROLLOUT,
    TIME_STEP,
)
from posttrain.run.process import saving_on_sigterm, stop_requested
from posttrain.run.rows import EvaluationRow
from posttrain.run.tracking import Tracker
from posttrain.training.core.policy import CHECKPOINTS_KEPT
from posttrain.training.on_policy.learner import PolicyMismatch
from posttrain.training.on_policy.learner_group import LearnerGroup
from posttrain.training.on_policy.prompts import StepPrompts
from posttrain.training.on_policy.publishing import Publisher
from posttrain.training.on_policy.signals.group_relative import AdvantageCounts, assign_advantages
from posttrain.training.run_at_work import RunAtWork
from posttrain.types import Trajectory

logger = logging.getLogger(__name__)


class OnPolicyRunner:
    """Runs an rl stage: starts the learners, publishes their weights after each step, saves and stops.

    Args:
        work: The run.
        stage: The stage's settings.
    """

    def __init__(self, work: RunAtWork, stage: RlStage) -> None:
        self._work, self._stage = work, stage

    def measurements(self) -> Sequence[EvaluationRow]:
        """Return nothing: an rl stage measures nothing by itself."""
        return []

    def run(self) -> Path:
        """Train from the stage's newest checkpoint, or from its start; return the final checkpoint."""
        work, stage = self._work, self._stage
        newest = work.run.newest_checkpoint(stage.name)
        done = step_of(newest) if newest else 0
        start = newest or work.start_of(stage)
        assert start is not None
        pool = work.services.pool_with(start, stage.rollout)
        learners = LearnerGroup(
            work.config.model, stage, start, resume=newest is not None, use_gpu=work.use_gpu
        )
        publisher = Publisher(
            learners, pool, stage, work.config.model.dtype, use_gpu=work.use_gpu, adapters=False
        )
        tracker = Tracker(work.run, work.config.trackers)
        tracker.rewind(stage.name, done)
        tracker.start(stage.name, stage.max_steps)
        check = RenderCheck(KnownRenderer(start, work.config.model), "episodes")
        controller = Controller(work.config, stage, work.run, pool, learners, check)
        try:
            with saving_on_sigterm(work.run):
                for step in range(done + 1, stage.max_steps + 1):
                    tracker.log(stage.name, step, self._step(step, controller, publisher))
                    stop = stop_requested(work.run)
                    if step % stage.save_steps == 0 or step == stage.max_steps or stop:
                        newest = work.run.save_checkpoint(
                            stage.name, step, learners.write_checkpoint, keep=CHECKPOINTS_KEPT
                        )
                    if stop:
                        break
        finally:
            tracker.close()
            learners.close()
        assert newest is not None
        return newest

    def _step(self, step: int, controller: "Controller", publisher: Publisher) -> dict[str, float]:
        """Make one step and publish its weights; return the step's metrics."""
        services = self._work.services
        begun = time.perf_counter()
        metrics = step_or_repeat(
            lambda: controller.step(step), lambda: publisher.publish(services.next_version())
        )
        publisher.prove_by(controller.learned)
        published = publisher.publish(services.next_version())
        published[PUBLISH_REPEATED] += metrics.get(PUBLISH_REPEATED, 0.0)
        return metrics | published | {TIME_STEP: time.perf_counter() - begun}


def step_or_repeat(step: Callable[[], dict[str, float]], publish: Callable[[], object]) -> dict[str, float]:
    """Make a step; if engine and learner disagree, publish the weights again and repeat it once.

    Nothing has been learned from a batch on which they disagree. One repetition repairs a publish that went
    wrong in an engine, and rare rounding errors of a CPU engine on an overloaded machine (seen once in about
    300 steps: the log-prob of one token was off by 6e-4, and not again with the same samples).

    Args:
        step: Makes the step, and returns its metrics.
        publish: Publishes the present weights.

    Raises:
        PolicyMismatch: If they disagree again.
    """
    try:
        return step() | {PUBLISH_REPEATED: 0.0}
    except PolicyMismatch as mismatch:
        logger.warning("publishing again and repeating the rollout once: %s", mismatch)
    publish()
    return step() | {PUBLISH_REPEATED: 1.0}


class Controller:
    """Makes one step at a time: prompts, rollout, rewards, update.

    Args:
        config: The run's settings.
        stage: The stage's settings.
        run: The run's directory.
        pool: The engines.
        learners: The learners.
        check: Tells which prompts the policy can be shown.

    Attributes:
        learned: The episodes that the last step learned from.
    """

    def __init__(
        self,
        config: RunConfig,
        stage: RlStage,
        run: RunDir,
        pool: RolloutPool,
        learners: LearnerGroup,
        check: RowCheck | None = None,
    ) -> None:
        self._stage = stage
        self._run = run
        self._pool = pool
        self._learners = learners
        self.learned: list[Trajectory] = []
        samples = {
            task.name: load_samples(task.data, config.base_dir, use="episodes", check=check)
            for task in stage.tasks
        }
        ratios = {task.name: task.ratio for task in stage.tasks}
        mixture = Mixture(samples, ratios, seed=config.seed)
        self._prompts = StepPrompts(mixture, stage, config.seed, pool.prompt_tokens)

    def step(self, step: int) -> dict[str, float]:
        """Roll out, score, record and learn; return the step's metrics."""
        settings = self._stage.rollout
        limits = Limits(settings.max_new_tokens, settings.max_length)
        begun = time.perf_counter()
        groups, left_out = self._prompts.of_step(step)
        rollout = self._pool.rollout(groups, limits)
        metrics = {
            TIME_ROLLOUT: time.perf_counter() - begun,
            TIME_REWARD: rollout.reward_seconds,
            DATA_LEFT_OUT: float(left_out),
        }
        counts = assign_advantages(rollout.trajectories)
        metrics |= rollout_metrics(rollout.trajectories, counts)
        write_trajectories(
            self._run,
            f"{self._stage.name}/step-{step}",
            rollout.trajectories,
            {group.group: group.sample for group in groups},
            stage=self._stage.name,
            step=step,
        )
        learnable = [trajectory for trajectory in rollout.trajectories if trajectory.advantage is not None]
        self.learned = learnable
        return metrics | self._learners.update(learnable)


def rollout_metrics(trajectories: Sequence[Trajectory], counts: AdvantageCounts) -> dict[str, float]:
    """Compute means over a rollout's episodes: rewards by name, tool calls, turns, tokens."""
    rewards: dict[str, list[float]] = {}  # by metric name
    for trajectory in trajectories:
        verdict = trajectory.reward
        if verdict is None or verdict.total is None:
            continue
        rewards.setdefault(REWARD_MEAN, []).append(verdict.total)
        for name, value in verdict.values.items():
            if value is not None:
                rewards.setdefault(REWARD + name, []).append(value)
    calls = [sum(call.images > 0 for call in trajectory.tool_calls) for trajectory in trajectories]
    turns = [sum(m.role == "assistant" for m in trajectory.response) for trajectory in trajectories]
    return {
        **{name: fmean(values) for name, values in rewards.items()},
        REWARD_ERRORS: float(counts.errors),
        ADVANTAGE_ZERO_GROUPS: float(counts.zero_groups),
        ADVANTAGE_DROPPED_GROUPS: float(counts.dropped_groups),
        EPISODE_TOOL_CALLS: fmean(calls),
        EPISODE_TURNS: fmean(turns),
        EPISODE_TOKENS: fmean(len(trajectory.token_ids) for trajectory in trajectories),
        EPISODE_TRUNCATED: fmean(trajectory.stop_reason != "answer" for trajectory in trajectories),
    }
