"""Engines, learners and publisher that a test decides, and a stage that the controller runs with them."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import RlStage
from posttrain.data.mixing import Mixture
from posttrain.failures import ToolFailure
from posttrain.inference.reading import Reading
from posttrain.rollout.jobs import GroupJob, PlayedGroup
from posttrain.rollout.play import PlayGroup
from posttrain.run.directory import RunDir
from posttrain.run.token_figures import Entropies
from posttrain.training.on_policy.controller import Controller, Crew
from posttrain.training.on_policy.learner import PolicyMismatch
from posttrain.training.on_policy.learner_group import LearnerFailed
from posttrain.training.on_policy.pacing import Pacing, StalenessError, run_paced
from posttrain.training.on_policy.prompts import StepPrompts
from posttrain.types import RewardResult, Sample, Trajectory, text_message

STEPS = 6
PROMPTS = 4


@dataclass
class Team:
    """Engines, learners and publisher in one; keeps a list of what happened.

    Attributes:
        seconds: How long a group takes, by its sample; None is for ever.
        faults: How many updates disagree with the engines.
        serves: The version that engines serve whatever they are given; None is what they are given.
        wrong_proofs: The version whose proof fails once.
        reward: What an episode of a sample earns; None where a reward failed.
        learner_dies: When a learner dies, by the monotonic clock; 0 is never.
        fails: Whether the world fails the first episode of a group, by its sample.
        events: What was done, in order.
        learned: The samples of each update.
    """

    seconds: Callable[[str], float | None] = lambda sample: 0.0
    faults: int = 0
    actors: int = 1
    serves: int | None = None
    wrong_proofs: int = 0
    learner_dies: float = 0.0
    reward: Callable[[str, int], float | None] = lambda sample, episode: float(episode)
    fails: Callable[[str], bool] = lambda sample: False
    version: int = 0
    events: list[str] = field(default_factory=list)
    learned: list[list[str]] = field(default_factory=list)

    def submit(self, jobs: Sequence[PlayGroup]) -> list[Future[PlayedGroup]]:
        self.events.append(f"play {jobs[0].group.sample.id}")
        return [self._begin(job.group) for job in jobs]

    def _begin(self, group: GroupJob) -> Future[PlayedGroup]:
        future: Future[PlayedGroup] = Future()
        seconds = self.seconds(group.sample.id)
        if seconds is not None:
            timer = threading.Timer(seconds, self._end, (group, future))
            timer.daemon = True
            timer.start()
        return future

    def _end(self, group: GroupJob, future: Future[PlayedGroup]) -> None:
        version = self.version if self.serves is None else self.serves
        members = [
            Trajectory(
                *(group.sample.id, group.task, group.group, episode, [1, 2], [False, True], [0.0, -0.5]),
                versions=[-1, version],
                approximate=[False] * 2,
                reward=RewardResult(self.reward(group.sample.id, episode)),
                stop_reason="answer",
            )
            for episode in range(group.size)
        ]
        if self.fails(group.sample.id):
            members[0] = replace(
                members[0],
                stop_reason="error",
                reward=None,
                failures=[ToolFailure("search", "no answer")] * 2,
            )
        if future.set_running_or_notify_cancel():
            future.set_result(PlayedGroup(members, 0.0))

    def prompt_tokens(self, groups: Sequence[GroupJob]) -> Mapping[int, int]:
        return {group.group: 5 for group in groups}

    def update(
        self, trajectories: Sequence[Trajectory], version: int, readings: Sequence[Reading | None] = ()
    ) -> dict[str, float]:
        assert version == self.version
        if self.faults:
            self.faults -= 1
            self.events.append("mismatch")
            raise PolicyMismatch("they differ")
        self.events.append(f"learn {trajectories[0].sample_id}")
        self.learned.append(sorted({trajectory.sample_id for trajectory in trajectories}))
        return {"loss": 1.0}

    def entropies(self) -> Entropies:
        return {}

    def prove_by(self, trajectories: Sequence[Trajectory]) -> None:
        self.proof = {trajectory.sample_id for trajectory in trajectories}

    def publish(self, version: int) -> dict[str, float]:
        self.events.append(f"publish {version}")
        self.version = version
        wrong = self.wrong_proofs == version
        return {"time/publish": 0.5, "publish/repeated": float(wrong), "publish/proof_gap": 0.1 * version}

    def check(self) -> None:
        if self.learner_dies and time.monotonic() > self.learner_dies:
            raise LearnerFailed("a learner's process died")

    def write_checkpoint(self, directory: Path) -> None:
        (directory / "learned.txt").write_text(str(len(self.learned)))


@dataclass
class Log:
    """Keeps metrics."""

    rows: list[dict[str, float]] = field(default_factory=list)
    on_row: Callable[[int], object] = lambda step: None

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append(dict(metrics))
        self.on_row(step)


def stage_of(staleness: int = 0, rounds: int = 0) -> RlStage:
    return RlStage.model_validate(
        {
            "stage": "rl",
            "algorithm": {"name": "sapo", "group_size": 2},
            "tasks": [{"data": "rows", "rewards": [{"name": "answer_accuracy"}]}],
            "prompts_per_step": PROMPTS,
            "max_steps": STEPS,
            "save_steps": 4,
            "rollout": {"max_staleness": staleness},
            **({"dynamic_sampling": {"max_rounds": rounds}} if rounds else {}),
        }
    )


def prompt(draw: int) -> str:
    return f"{draw // PROMPTS + 1}.{draw % PROMPTS}"


class InOrder(Mixture):
    """Draws rows in their order, so that a sample's name says its step and its place."""

    def index(self, draw: int) -> tuple[str, int]:
        return "rows", draw


def run(
    team: Team, run: RunDir, staleness: int = 0, log: Log | None = None, done: int = 0, rounds: int = 0
) -> Log:
    """Run a stage from a step on."""
    log, stage, versions = log or Log(), stage_of(staleness, rounds), count(1)
    messages = (text_message("user", "?"),)
    # With rounds of refilling, as many rows more as each of them may take.
    dataset: Any = [Sample(prompt(draw), messages) for draw in range((1 + 9 * rounds) * STEPS * PROMPTS)]
    prompts = StepPrompts(InOrder({"rows": dataset}, {"rows": 1.0}, 0), stage, 0, team.prompt_tokens)
    pool: Any = team
    crew = Crew(pool, team, team, lambda: next(versions))
    pacing = Pacing(staleness, done, STEPS)
    controller = Controller(stage, run, crew, prompts, pacing, log)
    try:
        run_paced(pacing, controller, (PolicyMismatch, StalenessError))
        controller.save()
    finally:
        controller.close()
    return log


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def own_prompts(first: int = 1) -> list[list[str]]:
    """The prompts of each step, from the first on."""
    return [[f"{step}.{place}" for place in range(PROMPTS)] for step in range(first, STEPS + 1)]
