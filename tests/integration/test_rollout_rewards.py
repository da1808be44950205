"""Rollouts scored by a real reward server: every group in one request, and a clear end when it stays away."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.config import EngineConfig, ModelConfig, RewardRef, TaskConfig
from posttrain.config.judge_budget import JudgeBudgetConfig, TokenPriceConfig
from posttrain.first_party import PLUGINS
from posttrain.inference.engine import stable_seed
from posttrain.quickstart import stand_in_judge
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob
from posttrain.rollout.play import PlayGroup, RolloutPool
from posttrain.rollout.reward_server import start_reward_server
from posttrain.rollout.worker import RewardAccess, RolloutSetup, RolloutWorker, reward_input
from posttrain.run.judging import spending_metrics, write_budget
from posttrain.training.on_policy.signals.group_relative import assign_advantages
from posttrain.types import Sample, Trajectory, text_message
from rewards.serving.client import RewardRequestRefused, RewardServerUnavailable
from rewards.serving.launch import RewardServer, start_server
from tests.at_work import do

LIMITS = Limits(max_new_tokens=100, max_length=500)
SCRIPTED = Path(__file__).parents[1] / "unit" / "rollout" / "scripted_engine.py"


@pytest.fixture(scope="module")
def server() -> Iterator[RewardServer]:
    with start_server(["answer_accuracy", "overlong"]) as started:
        yield started


@pytest.fixture
def setup(server: RewardServer, talker: Path, tmp_path: Path) -> RolloutSetup:
    overlong = {"name": "overlong", "weight": 0, "params": {"limit": 400, "soft": 400, "unit": "tokens"}}
    task: dict[str, object] = {"data": "markers", "tools": ["image_zoom_in"], "max_turns": 3}
    task["rewards"] = ["answer_accuracy", overlong]
    return RolloutSetup(
        model=ModelConfig(family="qwen3_vl", dtype="float32"),
        checkpoint=talker,
        engine_config=EngineConfig(),
        tasks=[TaskConfig.model_validate(task)],
        max_length=LIMITS.max_length,
        image_dir=tmp_path,
        load_tools=PLUGINS.load_tools,
        make_environment=PLUGINS.make_environment,
        rewards=RewardAccess(server.url, server.token, PLUGINS.make_reward_client, wait=1.0),
        engine=f"{SCRIPTED}:ScriptedEngine",
    )


@pytest.fixture
def groups(samples: list[Sample]) -> list[GroupJob]:
    return [
        GroupJob(i, "markers", dataclasses.replace(sample, ground_truth="3"), 8, stable_seed(0, i))
        for i, sample in enumerate(samples[:3])
    ]


def test_every_episode_gets_its_verdict(setup: RolloutSetup, groups: list[GroupJob]) -> None:
    worker = RolloutWorker()
    worker.start(setup)
    played = do(worker, [PlayGroup(group, LIMITS) for group in groups])
    worker.close()
    trajectories = [trajectory for group in played for trajectory in group.trajectories]
    for trajectory in trajectories:
        assert trajectory.reward is not None
        assert trajectory.reward.total == float(trajectory.response[-1].text == "3")
        assert trajectory.reward.values["overlong"] == -sum(trajectory.sampled) / 400
    assert 0 < sum(t.reward.total or 0 for t in trajectories if t.reward) < len(trajectories)
    assert assign_advantages(trajectories).errors == 0


def test_a_server_that_stays_away_fails_the_rollout_with_its_message(
    ray_cluster: None, setup: RolloutSetup, groups: list[GroupJob]
) -> None:
    assert setup.rewards is not None
    away = dataclasses.replace(setup.rewards, url="http://127.0.0.1:9")
    pool = RolloutPool(dataclasses.replace(setup, rewards=away), actors=1, use_gpu=False)
    try:
        with pytest.raises(RewardServerUnavailable, match=r"127\.0\.0\.1:9 has not scored anything for 1 s"):
            pool.rollout(groups, LIMITS)
    finally:
        pool.close()


def test_a_judge_stands_in_for_the_rule_until_its_budget_is_spent(
    setup: RolloutSetup,
    groups: list[GroupJob],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tiny model judges, over HTTP, through the run's own server, what the rule does not find right."""
    judge = {"name": "judge", "weight": 0.5, "unless": {"answer_accuracy": 1}}
    judge["params"] = {"model": "stand-in", "rubric": "preference", "cache_dir": None}
    task = setup.tasks[0].model_copy(
        update={"rewards": [RewardRef(name="answer_accuracy"), RewardRef.model_validate(judge)]}
    )
    endpoint = stand_in_judge.start(tiny_checkpoint)
    monkeypatch.setenv("POSTTRAIN_JUDGE_URL", f"http://127.0.0.1:{endpoint.server_address[1]}/v1")
    prices = {"stand-in": TokenPriceConfig(input=1.0, output=1.0)}
    budget = write_budget(tmp_path, JudgeBudgetConfig(max_calls=20, prices=prices))
    server, access = start_reward_server(
        PLUGINS, [task], tmp_path, tmp_path / "rewards.log", wait=1.0, judge_budget=budget
    )
    worker = RolloutWorker()
    try:
        worker.start(dataclasses.replace(setup, tasks=[task], rewards=access))
        members = do(worker, [PlayGroup(groups[0], LIMITS)])[0].trajectories
        asked = 0
        for verdict in (member.reward for member in members):
            assert verdict is not None
            right, found = verdict.values["answer_accuracy"], verdict.values["judge"]
            assert (found is None) == (right == 1)
            asked += found is not None
            assert verdict.total == (1.0 if found is None else 0.5 * found)
        # Of answers that attack the judge or are none it is not asked either.
        assert 0 < spending_metrics(tmp_path)["judge/calls"] <= asked
        assert spending_metrics(tmp_path)["judge/cost"] > 0
        with pytest.raises(RewardRequestRefused, match="all 20 calls of max_calls were made"):
            do(worker, [PlayGroup(dataclasses.replace(group, size=40), LIMITS) for group in groups])
        assert spending_metrics(tmp_path)["judge/calls"] == 20
    finally:
        worker.close()
        server.close()
        endpoint.shutdown()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is K.", "It is K."),
        ("<think>A? No.</think>\nK", "K"),
        ("<think>A", ""),
        ("x <think>a</think> y <think>b</think> z", "z"),
    ],
)
def test_the_answer_is_the_last_turn_without_its_thinking(text: str, answer: str) -> None:
    trajectory = Trajectory("s", "t", 0, 0, stop_reason="answer")
    trajectory.response = [text_message("assistant", "<tool_call>"), text_message("tool", "4")]
    trajectory.response.append(text_message("assistant", text))
    seen = reward_input(trajectory, Sample("s", (), ground_truth="K", columns={"split": "train"}))
    assert (seen.answer, seen.ground_truth, seen.columns) == (answer, "K", {"split": "train"})
    assert not seen.truncated
