"""Learner, weight sync and engine together: a publish that did not happen does not go unnoticed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.config import ModelConfig, RlStage, TaskConfig
from posttrain.first_party import PLUGINS
from posttrain.inference.weights import CheckpointWeights
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob
from posttrain.rollout.play import RolloutPool
from posttrain.rollout.worker import RolloutSetup
from posttrain.training.on_policy.learner import PolicyMismatch
from posttrain.training.on_policy.learner_group import LearnerGroup
from posttrain.training.on_policy.signals.group_relative import assign_advantages
from posttrain.training.on_policy.weight_sync import WeightSync
from posttrain.types import RewardResult, Sample, Trajectory
from tests.integration.conftest import ENGINE_CONFIG, MAX_LENGTH

LIMITS = Limits(max_new_tokens=24, max_length=MAX_LENGTH)
TASK = {"data": "markers_train", "rewards": [{"name": "answer_accuracy"}]}


@pytest.fixture(scope="module")
def pool(ray_cluster: None, talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutPool]:
    setup = RolloutSetup(
        model=ModelConfig(dtype="float32"),
        checkpoint=talker,
        engine_config=ENGINE_CONFIG,
        tasks=[TaskConfig.model_validate(TASK)],
        max_length=LIMITS.max_length,
        image_dir=tmp_path_factory.mktemp("images"),
        load_tools=PLUGINS.load_tools,
        make_environment=PLUGINS.make_environment,
    )
    pool = RolloutPool(setup, actors=1, use_gpu=False)
    yield pool
    pool.close()


@pytest.fixture
def learners(ray_cluster: None, talker: Path) -> Iterator[LearnerGroup]:
    stage = RlStage.model_validate(
        {
            "stage": "rl",
            "algorithm": {"name": "sapo", "group_size": 4},
            "tasks": [TASK],
            "prompts_per_step": 4,
            "max_steps": 10,
            "learning_rate": 1e-3,
            "per_device_batch_size": 8,
        }
    )
    group = LearnerGroup(ModelConfig(dtype="float32"), stage, talker, resume=False, use_gpu=False)
    yield group
    group.close()


@pytest.fixture
def roll_out(pool: RolloutPool, samples: list[Sample]) -> Callable[[int], list[Trajectory]]:
    """A scored batch from the engine's present weights; shorter answers are better."""

    def run(seed: int) -> list[Trajectory]:
        groups = [GroupJob(i, "markers_train", samples[i], size=4, seed=seed * 100 + i) for i in range(4)]
        trajectories = pool.rollout(groups, LIMITS).trajectories
        for trajectory in trajectories:
            trajectory.reward = RewardResult(1 / sum(trajectory.sampled))
        assign_advantages(trajectories)
        return trajectories

    return run


def test_engine_and_learner_agree_after_every_publish(
    pool: RolloutPool,
    learners: LearnerGroup,
    roll_out: Callable[[int], list[Trajectory]],
    talker: Path,
    tmp_path: Path,
):
    pool.publish(CheckpointWeights(talker, 0))
    sync = WeightSync(learners, pool, tmp_path)
    try:
        for version in (1, 2, 3):
            trajectories = roll_out(version)
            seen = {v for t in trajectories for v, s in zip(t.versions, t.sampled, strict=True) if s}
            assert seen == {version - 1}
            metrics = learners.update(trajectories)
            assert metrics["logprob_gap/max"] < 1e-4
            sync.publish(version)
    finally:
        sync.close()


def test_a_skipped_publish_is_caught(
    pool: RolloutPool, learners: LearnerGroup, roll_out: Callable[[int], list[Trajectory]], talker: Path
):
    pool.publish(CheckpointWeights(talker, 0))
    learners.update(roll_out(7))
    pool.publish(
        CheckpointWeights(talker, 1)
    )  # the fault: a new version is announced, but the old weights are served
    with pytest.raises(PolicyMismatch, match="publish that was skipped"):
        learners.update(roll_out(8))
