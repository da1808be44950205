"""RL: the controller's loop of rollout, reward, update and publish.

    for each step, as far ahead as rollout.max_staleness permits (see `pacing`):
        play    = the step's prompts to the engines, a group at a time
        collect = the step's episodes, scored while others still run
        learn   = the learners check the engines' log-probs, then learn from their mini-batches
        publish = the new weights to every engine, which proves that it serves them

The prompts and random numbers of a step depend on the seed and the step alone, so a resumed run goes on with
those of an undisturbed one; where arithmetic repeats (on a CPU, in float32, at max_staleness 0) it also ends
as that would have.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from posttrain.config import OnPolicyStage
from posttrain.inference.reading import Reading
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob
from posttrain.rollout.records import write_trajectories
from posttrain.rollout.token_figures import TokenBytes, token_figures
from posttrain.rollout.world import check_world
from posttrain.run.directory import RunDir
from posttrain.run.judging import spending_metrics
from posttrain.run.metric_names import (
    DATA_LEFT_OUT,
    PUBLISH_PROOF_GAP,
    PUBLISH_REPEATED,
    REWARD_ERRORS,
    TIME_ENGINE_WAIT,
    TIME_LEARNER_WAIT,
    TIME_REWARD,
    TIME_STEP,
)
from posttrain.run.process import stop_requested
from posttrain.run.token_figures import Entropies, write_token_figures
from posttrain.training.core.policy import CHECKPOINTS_KEPT
from posttrain.training.on_policy.in_flight import EpisodePool, StepInFlight, in_order, readings_in_order
from posttrain.training.on_policy.judge_agreement import JudgedPair, agreement_metrics
from posttrain.training.on_policy.pacing import EngineMeter, Pacing, age_metrics
from posttrain.training.on_policy.prompts import PromptsAhead, StepPrompts
from posttrain.training.on_policy.refilling import Refills
from posttrain.training.on_policy.rollout_metrics import play_times, rollout_metrics
from posttrain.training.on_policy.signals.group_relative import AdvantageCounts, assign_advantages
from posttrain.types import Trajectory


class Learners(Protocol):
    """What learns (see `LearnerGroup`)."""

    def update(
        self, trajectories: Sequence[Trajectory], version: int, readings: Sequence[Reading | None] = ()
    ) -> dict[str, float]:
        """Learn from a step's episodes with the weights that are served as a version; return metrics.

        Readings are what a teacher in engines says of each, where there is one.
        """
        ...

    def entropies(self) -> Entropies:
        """Return the entropies at the sampled tokens of the last update's episodes, as far as known."""
        ...

    def check(self) -> None:
        """Raise an error if a learner has died; return at once."""
        ...

    def write_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint with its training state."""
        ...


class PublishesWeights(Protocol):
    """What brings the learners' weights to the engines (see `Publisher`)."""

    def prove_by(self, trajectories: Sequence[Trajectory]) -> None:
        """Prove the publishes that follow by a few of these episodes."""
        ...

    def publish(self, version: int) -> dict[str, float]:
        """Return once every engine has proved that it serves the present weights as this version."""
        ...


class MetricsLog(Protocol):
    """Where a step's metrics go (see `Tracker`)."""

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        ...


@dataclass(frozen=True)
class Crew:
    """Who does the work of a stage.

    Attributes:
        pool: The engines.
        learners: The learners.
        publisher: Brings weights from the one to the other.
        next_version: Returns a version that was never used.
        learning: What an update happens within (see `engines_asleep`).
        token_bytes: Sizes of the tokens, by which their figures are recorded; if absent they are not.
    """

    pool: EpisodePool
    learners: Learners
    publisher: PublishesWeights
    next_version: Callable[[], int]
    learning: Callable[[], AbstractContextManager[None]] = nullcontext
    token_bytes: TokenBytes | None = None


@dataclass(frozen=True)
class PlayedStep:
    """A step's episodes.

    Attributes:
        trajectories: By group and episode.
        readings: What a teacher in engines says of each; empty without one.
        groups: The groups.
        refills: The rounds in which they were played.
        metrics: What there is to say of them.
    """

    trajectories: list[Trajectory]
    readings: list[Reading | None]
    groups: Sequence[GroupJob]
    refills: Refills
    metrics: dict[str, float]


class Controller:
    """Does the work of `run_paced`: prompts to engines, episodes to learners, records and checkpoints.

    Args:
        stage: The stage's settings.
        run: The run's directory.
        crew: Who does the work.
        prompts: The prompts of each step.
        pacing: Where the stage stands.
        tracker: Takes the metrics.
        judged: By task, the judges that are compared with its rules.
    """

    def __init__(
        self,
        stage: OnPolicyStage,
        run: RunDir,
        crew: Crew,
        prompts: StepPrompts,
        pacing: Pacing,
        tracker: MetricsLog,
        judged: Mapping[str, Sequence[JudgedPair]] | None = None,
    ) -> None:
        self._stage, self._run, self._crew, self._pacing, self._tracker = stage, run, crew, pacing, tracker
        self._judged = judged or {}
        temperature = stage.rollout.temperature
        self._limits = {task.name: Limits.of_task(task, stage.rollout, temperature) for task in stage.tasks}
        self._all_prompts, self._prompts = prompts, PromptsAhead(prompts.of_step, stage.max_steps)
        self._meter = EngineMeter(crew.pool.actors)
        self._in_flight: dict[int, StepInFlight] = {}
        self._refills: dict[int, Refills] = {}
        self._saved = pacing.learned
        self._version = -1  # of the learners' weights, as the engines know them
        self._begin_row()

    def _begin_row(self) -> None:
        """Begin the metrics of the next step."""
        self._row: dict[str, float] = {TIME_LEARNER_WAIT: 0.0}
        self._meter.take()
        self._begun = time.perf_counter()

    def play(self, step: int) -> None:
        """Give a step's groups to the engines."""
        begun = time.perf_counter()
        drawn = self._prompts.take(step)
        refills = Refills(self._all_prompts, drawn, self._stage.refill_rounds, self._compare)
        self._row[TIME_LEARNER_WAIT] += time.perf_counter() - begun
        self._refills[step] = refills
        self._in_flight[step] = StepInFlight(
            self._crew.pool, self._meter, drawn.groups, self._limits, refills.further
        )

    def collect(self, step: int) -> PlayedStep | None:
        """Wait for a step's episodes; return None where the run is asked to stop."""
        flight, begun = self._in_flight[step], time.perf_counter()
        played = flight.wait(self._stopping)
        self._row[TIME_LEARNER_WAIT] += time.perf_counter() - begun
        if played is None:
            return None
        del self._in_flight[step]
        refills = self._refills.pop(step)
        metrics = {
            **play_times(flight.seconds, played),
            TIME_REWARD: max(group.reward_seconds for group in played),
            DATA_LEFT_OUT: float(refills.drawn.left_out),
            **refills.metrics(),
        }
        return PlayedStep(in_order(played), readings_in_order(played), flight.groups, refills, metrics)

    def _stopping(self) -> bool:
        """Tell whether the run is asked to stop; raise an error if what it waits for could not be learned."""
        self._crew.learners.check()
        for flight in self._in_flight.values():  # also those of steps that are learned later
            flight.go_on()
        return stop_requested(self._run)

    def learn(self, step: int, played: PlayedStep) -> None:
        """Compare a step's episodes within their groups, record them, and have the learners learn.

        Raises:
            StalenessError: If an engine served other weights than it was given.
            PolicyMismatch: If engine and learner disagree on the log-probs of present weights.
            WorldFailing: If tools or environments failed too many of them.
        """
        trajectories = played.trajectories
        ages = self._pacing.ages(
            version for each in trajectories for version in each.versions if version >= 0
        )
        counts = self._compare(trajectories)
        self._row |= rollout_metrics(in_order(played.refills.first), counts) | played.metrics
        self._row |= agreement_metrics(trajectories, self._judged)
        self._row[REWARD_ERRORS] += played.refills.errors
        if self._stage.rollout.max_staleness:
            self._row |= age_metrics(ages, self._stage.rollout.max_staleness)
        samples = {group.group: group.sample for group in played.groups}
        name = f"{self._stage.name}/step-{step}"
        rows = write_trajectories(self._run, name, trajectories, samples, stage=self._stage.name, step=step)
        self._write_figures(rows, trajectories, {})
        check_world(trajectories, self._stage.rollout.max_failed_share, name)
        taught = self._stage.teacher_name is not None
        told = [each for each in trajectories if taught or each.advantage is not None]
        learnable = [each for each in told if not each.failed]
        readings = [each for each in played.readings if each is not None]
        with self._crew.learning():
            self._row |= self._crew.learners.update(learnable, self._version, readings)
        self._write_figures(rows, trajectories, self._crew.learners.entropies())
        self._crew.publisher.prove_by([each for each in trajectories if not each.failed])

    def _write_figures(self, rows: Path, trajectories: Sequence[Trajectory], entropies: Entropies) -> None:
        """Write the figures of the tokens of a step's episodes beside their rows."""
        if self._crew.token_bytes is not None:
            write_token_figures(rows, token_figures(trajectories, self._crew.token_bytes, entropies))

    def _compare(self, trajectories: Sequence[Trajectory]) -> AdvantageCounts:
        """Compare episodes within their groups."""
        rewards = {task.name: task.rewards for task in self._stage.tasks}
        rewarded = [each for each in trajectories if rewards[each.task]]
        return assign_advantages(rewarded, rewards, self._stage.algorithm)

    def publish(self) -> int:
        """Bring the learners' weights to every engine, as a new version."""
        if self._version < 0:
            self._begin_row()  # until now engines and learners were starting
        self._version = self._crew.next_version()
        told = self._crew.publisher.publish(self._version)
        for name, value in told.items():
            before = self._row.get(name, 0.0)
            self._row[name] = max(before, value) if name == PUBLISH_PROOF_GAP else before + value
        if told.get(PUBLISH_REPEATED):  # what was sampled before the second time is of other weights
            self.discard()
            self._pacing.replay()
        return self._version

    def discard(self) -> None:
        """Give up every episode that is under way."""
        for flight in self._in_flight.values():
            flight.cancel()
        self._in_flight.clear()

    def finish(self, step: int, repeated: bool) -> bool:
        """Record a step's metrics, and save where it is time to; return whether to go on."""
        stop = stop_requested(self._run)
        self._row |= {
            PUBLISH_REPEATED: max(self._row.get(PUBLISH_REPEATED, 0.0), float(repeated)),
            TIME_ENGINE_WAIT: self._meter.take(),
            TIME_STEP: time.perf_counter() - self._begun,
            **spending_metrics(self._run.path),
        }
        self._tracker.log(self._stage.name, step, self._row)
        if step % self._stage.save_steps == 0 or step == self._stage.max_steps:
            self.save()
        self._begin_row()
        return not stop

    def save(self) -> None:
        """Save what has been learned, unless it is saved already."""
        learned = self._pacing.learned
        if learned > self._saved:
            write = self._crew.learners.write_checkpoint
            self._run.save_checkpoint(self._stage.name, learned, write, keep=CHECKPOINTS_KEPT)
            self._saved = learned

    def close(self) -> None:
        """Give up what is under way."""
        self.discard()
        self._prompts.close()
