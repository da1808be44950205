"""The paced loop with real engines and learners: in turns the straight loop, ahead within its bound."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import ModelConfig, RlStage, TaskConfig
from posttrain.config.rl import DynamicSampling
from posttrain.data.mixing import Mixture
from posttrain.first_party import PLUGINS
from posttrain.inference.engine import EngineUse, stable_seed
from posttrain.joints import PluginSettings
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob
from posttrain.rollout.play import RolloutPool
from posttrain.rollout.worker import RewardAccess, RolloutSetup
from posttrain.run.directory import RunDir, step_of
from posttrain.run.process import STOP
from posttrain.training.on_policy.controller import Controller, Crew
from posttrain.training.on_policy.learner import PolicyMismatch
from posttrain.training.on_policy.learner_group import LearnerGroup
from posttrain.training.on_policy.pacing import Pacing, StalenessError, run_paced
from posttrain.training.on_policy.prompts import StepPrompts
from posttrain.training.on_policy.publishing import Publisher
from posttrain.training.on_policy.signals.group_relative import assign_advantages
from posttrain.types import Block, Message, RewardInput, RewardResult, Sample, VideoRef
from tests.integration.conftest import ENGINE_CONFIG, MAX_LENGTH

SEED = 5
TASK = "markers"
MODEL = ModelConfig(family="qwen3_vl", dtype="float32")
LIMITS = Limits(max_new_tokens=16, max_length=MAX_LENGTH)


class Brevity:
    """A reward client to which a shorter answer is a better one, but for what is hopeless."""

    def __init__(self, url: str, token: str, *, timeout: float, wait: float) -> None:
        pass

    def score(
        self,
        specs: Sequence[PluginSettings],
        inputs: Sequence[RewardInput],
        groups: Sequence[int] | None = None,
    ) -> list[RewardResult]:
        return [
            RewardResult(0.0 if each.ground_truth == "hopeless" else 1 / len(each.completion_ids))
            for each in inputs
        ]


@dataclass
class Log:
    """Keeps metrics, and asks the run to stop after a step."""

    run: RunDir
    stop_after: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append(dict(metrics))
        if step == self.stop_after:
            (self.run.path / STOP).touch()


def stage_of(steps: int, **rollout: Any) -> RlStage:
    task = {"data": "markers_train", "name": TASK, "rewards": [{"name": "answer_accuracy"}]}
    settings = {
        "stage": "rl",
        "algorithm": {"name": "sapo", "group_size": 4},
        "tasks": [task],
        "prompts_per_step": 2,
        "max_steps": steps,
        "learning_rate": 1e-3,
        "rollout": {"max_new_tokens": 16, "max_length": MAX_LENGTH} | rollout,
    }
    return RlStage.model_validate(settings)


@pytest.fixture(scope="module")
def setup(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> RolloutSetup:
    task = TaskConfig.model_validate({"data": TASK, "rewards": [{"name": "answer_accuracy"}]})
    return RolloutSetup(
        model=MODEL,
        checkpoint=talker,
        engine_config=ENGINE_CONFIG,
        tasks=[task],
        max_length=MAX_LENGTH,
        image_dir=tmp_path_factory.mktemp("images"),
        load_tools=PLUGINS.load_tools,
        make_environment=PLUGINS.make_environment,
        rewards=RewardAccess("", "", Brevity),
        use=EngineUse(transfer="gloo"),
        lockstep=True,
    )


@pytest.fixture(scope="module")
def pool(ray_cluster: None, setup: RolloutSetup) -> Iterator[RolloutPool]:
    started = RolloutPool(setup, actors=1, use_gpu=False)
    yield started
    started.close()


@dataclass
class Bench:
    """What the runs of a test have in common.

    Attributes:
        versions: Numbers that no run has used.
    """

    pool: RolloutPool
    samples: Any
    start: Path
    folder: Path
    versions: Iterator[int] = field(default_factory=lambda: count(1))

    def learners(self, stage: RlStage, checkpoint: Path) -> LearnerGroup:
        resume = checkpoint != self.start
        return LearnerGroup(MODEL, stage, checkpoint, resume=resume, use_gpu=False)

    def publisher(self, learners: LearnerGroup, stage: RlStage) -> Publisher:
        return Publisher(learners, self.pool, stage, MODEL.dtype, use_gpu=False, adapters_of=None)

    def paced(self, stage: RlStage, run: RunDir, stop_after: int = 0) -> list[dict[str, float]]:
        """Run the stage with the controller from its newest checkpoint; return its metrics."""
        newest = run.newest_checkpoint(stage.name)
        log, done = Log(run, stop_after), step_of(newest) if newest else 0
        learners = self.learners(stage, newest or self.start)
        publisher = self.publisher(learners, stage)
        mixture = Mixture({TASK: self.samples}, {TASK: 1.0}, seed=SEED)
        prompts = StepPrompts(mixture, stage, SEED, self.pool.prompt_tokens)
        pacing = Pacing(stage.rollout.max_staleness, done, stage.max_steps)
        crew = Crew(self.pool, learners, publisher, lambda: next(self.versions))
        controller = Controller(stage, run, crew, prompts, pacing, log)
        try:
            run_paced(pacing, controller, (PolicyMismatch, StalenessError))
            controller.save()
        finally:
            (run.path / STOP).unlink(missing_ok=True)
            controller.close()
            learners.close()
        return log.rows

    def straight(self, stage: RlStage, final: Path) -> list[dict[str, float]]:
        """The same without a controller: one thing after another."""
        learners = self.learners(stage, self.start)
        publisher = self.publisher(learners, stage)
        mixture = Mixture({TASK: self.samples}, {TASK: 1.0}, seed=SEED)
        metrics = []
        try:
            for step in range(1, stage.max_steps + 1):
                version = next(self.versions)
                publisher.publish(version)
                groups = []
                for group in range(2):
                    _, row = mixture.index((step - 1) * 2 + group)
                    seed = stable_seed(SEED, "rl", step, group)
                    groups.append(GroupJob(group, TASK, self.samples[row], 4, seed))
                trajectories = self.pool.rollout(groups, LIMITS).trajectories
                assign_advantages(trajectories)
                metrics.append(learners.update(trajectories, version))
                metrics[-1]["reward/mean"] = sum(t.reward.total for t in trajectories) / 8  # type: ignore
            final.mkdir()
            learners.write_checkpoint(final)
        finally:
            learners.close()
        return metrics


@pytest.fixture
def bench(pool: RolloutPool, samples: list[Sample], talker: Path, tmp_path: Path) -> Bench:
    return Bench(pool, samples, talker, tmp_path)


def without_times(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not name.startswith("time/")}


def test_in_turns_it_is_the_straight_loop_bit_for_bit_also_when_resumed(bench: Bench, soak: bool) -> None:
    steps, stop_after = (20, 7) if soak else (5, 2)
    stage = stage_of(steps)
    expected = bench.straight(stage, bench.folder / "straight")
    assert {"loss", "reward/mean", "grad_norm"} <= expected[0].keys()
    weights = load_file(bench.folder / "straight" / "model.safetensors")

    whole, halves = RunDir(bench.folder / "whole"), RunDir(bench.folder / "halves")
    found = bench.paced(stage, whole)
    resumed = bench.paced(stage, halves, stop_after)
    assert len(resumed) == stop_after
    resumed += bench.paced(stage, halves)
    for run, rows in ((whole, found), (halves, resumed)):
        for row, wanted in zip(rows, expected, strict=True):
            told = without_times(wanted)
            assert {name: row[name] for name in told} == told
        learned = load_file(run.path / "rl" / f"checkpoint-{steps}" / "model.safetensors")
        assert learned.keys() == weights.keys()
        for name, tensor in weights.items():
            assert torch.equal(learned[name], tensor), name
    start = load_file(bench.start / "model.safetensors")
    assert not torch.equal(start["lm_head.weight"], weights["lm_head.weight"])


def test_refilled_steps_are_resumed_bit_for_bit(bench: Bench) -> None:
    """Every other scene teaches nothing and is replaced; the second part of the run is resumed."""
    stage = stage_of(3).model_copy(update={"dynamic_sampling": DynamicSampling(max_rounds=2)})
    bench.samples = [
        replace(sample, ground_truth="hopeless" if index % 2 else "")
        for index, sample in enumerate(bench.samples)
    ]
    whole, halves = RunDir(bench.folder / "whole"), RunDir(bench.folder / "halves")
    found = bench.paced(stage, whole)
    resumed = bench.paced(stage, halves, stop_after=1) + bench.paced(stage, halves)
    assert sum(row["refill/groups"] for row in found) > 0
    assert list(map(without_times, found)) == list(map(without_times, resumed))
    weights, again = (
        load_file(run.path / "rl" / "checkpoint-3" / "model.safetensors") for run in (whole, halves)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_prompts_with_videos_are_learned_from_and_proved_and_too_long_ones_left_out(
    bench: Bench, clips: list[VideoRef]
) -> None:
    def asked(name: str, video: VideoRef) -> Sample:
        shown = Block("video", video=video), Block("text", text="What moves?")
        return Sample(name, (Message("user", shown),), ground_truth="")

    long = replace(clips[0], fps=10.0)
    bench.samples = [asked("long", long), *(asked(str(n), clip) for n, clip in enumerate(clips[:3]))]
    stage = stage_of(2, max_length=200).model_copy(update={"prompts_per_step": 3})
    run = RunDir(bench.folder / "films")
    rows = bench.paced(stage, run)
    assert sum(row["data/left_out"] for row in rows) > 0
    assert 0 < rows[0]["publish/proof_gap"] < 1e-5, rows  # by episodes of the first step
    assert all(row["logprob_gap/max"] < 1e-4 for row in rows)
    learned = load_file(run.path / "rl" / "checkpoint-2" / "model.safetensors")
    start = load_file(bench.start / "model.safetensors")
    assert not torch.equal(learned["lm_head.weight"], start["lm_head.weight"])


#: Seconds that scoring takes for half of the scenes.
SLOW_S = 0.7


class SlowBrevity(Brevity):
    """Takes its time for every other scene."""

    def score(
        self,
        specs: Sequence[PluginSettings],
        inputs: Sequence[RewardInput],
        groups: Sequence[int] | None = None,
    ) -> list[RewardResult]:
        if inputs[0].ground_truth == "slow":
            time.sleep(SLOW_S)
        return super().score(specs, inputs, groups)


@pytest.fixture
def free_pool(ray_cluster: None, setup: RolloutSetup) -> Iterator[RolloutPool]:
    """An engine that need not repeat bit for bit, beside a learner."""
    rewards = RewardAccess("", "", SlowBrevity)
    started = RolloutPool(
        replace(setup, rewards=rewards, lockstep=False), actors=1, use_gpu=False, busy_beside=1
    )
    yield started
    started.close()


def test_ahead_slow_prompts_are_learned_in_equal_shares_within_the_bound(
    free_pool: RolloutPool, samples: list[Sample], talker: Path, tmp_path: Path, soak: bool
) -> None:
    """Weights change while answers are under way, and a half of the prompts is slow: nothing is lost."""
    marked = [
        replace(sample, ground_truth="slow" if index % 2 else "fast") for index, sample in enumerate(samples)
    ]
    bench = Bench(free_pool, marked, talker, tmp_path)
    steps = 24 if soak else 8
    run = RunDir(tmp_path / "ahead")
    rows = bench.paced(stage_of(steps, max_staleness=2), run)
    assert [row["staleness/max"] <= 2 for row in rows] == [True] * steps
    assert max(row["staleness/max"] for row in rows) >= 1  # engines did go ahead
    played = [
        json.loads(line)
        for step in range(1, steps + 1)
        for line in (run.path / "rollouts" / "rl" / f"step-{step}.jsonl").read_text().splitlines()
    ]
    shares = Counter(row["ground_truth"] for row in played)
    assert shares == {"slow": steps * 4, "fast": steps * 4}  # two epochs of eight scenes at steps = 8
    assert {row["step"]: None for row in played}.keys() == set(range(1, steps + 1))
