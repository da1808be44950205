"""The pool of Ray actors with vLLM in them: workers that are killed, hang or stall; the newest weights."""

import dataclasses
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from posttrain.config import EngineConfig, ModelConfig, TaskConfig
from posttrain.first_party import PLUGINS
from posttrain.inference.answers import AnswerSampling, Question
from posttrain.inference.engine import stable_seed
from posttrain.inference.keeper import PoolError, Timeouts
from posttrain.inference.weights import CheckpointWeights, WeightsSuperseded
from posttrain.inference.worker import InferenceWorker
from posttrain.rollout.episode import EpisodeError, Limits
from posttrain.rollout.jobs import GroupJob
from posttrain.rollout.play import RolloutPool
from posttrain.rollout.worker import RolloutSetup, RolloutWorker
from posttrain.run.actors import Actor
from posttrain.types import Sample, Trajectory

LIMITS = Limits(max_new_tokens=24, max_length=400)
SCRIPTED = Path(__file__).parents[1] / "unit" / "rollout" / "scripted_engine.py"


@pytest.fixture(scope="session")
def setup(ray_cluster: None, talker: Path, tmp_path_factory: pytest.TempPathFactory) -> RolloutSetup:
    task = TaskConfig.model_validate(
        {
            "data": "markers",
            "tools": ["image_zoom_in"],
            "max_turns": 3,
            "rewards": [{"name": "answer_accuracy"}],
        }
    )
    return RolloutSetup(
        model=ModelConfig(family="qwen3_vl", dtype="float32"),
        checkpoint=talker,
        engine_config=EngineConfig(kv_cache_gb=0.25, max_num_seqs=64),
        tasks=[task],
        max_length=400,
        image_dir=tmp_path_factory.mktemp("images"),
        load_tools=PLUGINS.load_tools,
        make_environment=PLUGINS.make_environment,
    )


@pytest.fixture(scope="session")
def groups(samples: list[Sample]) -> list[GroupJob]:
    return [GroupJob(i, "markers", sample, 8, stable_seed(3, i)) for i, sample in enumerate(samples)]


@pytest.fixture(scope="module")  # its two engines hold 2 GB
def pool(setup: RolloutSetup) -> Iterator[RolloutPool]:
    started = RolloutPool(setup, actors=2, use_gpu=False)
    yield started
    started.close()


def process_id(pool: RolloutPool, index: int) -> int:
    actor = pool._keepers[index].actor
    assert actor is not None
    handle: Any = actor.handle
    return ray.get(handle.__ray_call__.remote(lambda _: os.getpid()), timeout=60)


def versions(trajectories: list[Trajectory]) -> set[int]:
    return {version for trajectory in trajectories for version in trajectory.versions if version >= 0}


def test_the_pool_returns_every_episode_once_in_order_and_reproducibly(
    pool: RolloutPool, groups: list[GroupJob]
) -> None:
    first = pool.rollout(groups, LIMITS).trajectories
    assert [(t.group, t.episode) for t in first] == [(g, e) for g in range(8) for e in range(8)]
    assert [t.sample_id for t in first[::8]] == [f"scene-{g}" for g in range(8)]
    assert all(t.stop_reason for t in first)
    assert pool.rollout(groups, LIMITS).trajectories == first
    assert pool.rollout(groups[:1], LIMITS).trajectories == first[:8]  # one worker has nothing to do


def test_questions_are_divided_and_answered_once_each(pool: RolloutPool, samples: list[Sample]) -> None:
    asked = [Question(7 * i, sample.messages, (), stable_seed(5, i)) for i, sample in enumerate(samples)]
    how = AnswerSampling(max_new_tokens=24, max_length=400, top_logprobs=4)
    found = pool.answer(asked, how)
    assert [answer.index for answer in found] == [question.index for question in asked]
    for answer in found:
        assert answer.top is not None
        assert answer.top.logprobs.shape == (len(answer.token_ids), 4)
        assert answer.truncated == (len(answer.token_ids) == 24)
    # Another share of the work, and another batch, give the same answers.
    alone = pool.answer(asked[3:4], how)
    assert [answer.token_ids for answer in alone] == [found[3].token_ids]
    [refused] = pool.answer(asked[:1], AnswerSampling(max_new_tokens=5, max_length=10))
    assert "leave no room for an answer in 10" in refused.error


def test_a_killed_worker_is_replaced_and_serves_the_published_weights(
    pool: RolloutPool, groups: list[GroupJob], make_talker: Callable[..., Path]
) -> None:
    other = make_talker(1)
    pool.publish(CheckpointWeights(other, 7))
    undisturbed = pool.rollout(groups, LIMITS).trajectories
    assert versions(undisturbed) == {7}
    victim = process_id(pool, 1)
    killer = threading.Timer(0.3, os.kill, (victim, signal.SIGKILL))
    killer.start()
    trajectories = pool.rollout(groups, LIMITS).trajectories
    killer.join()
    pool.rollout(groups, LIMITS)  # the kill may have come just after the rollout
    assert process_id(pool, 1) != victim
    assert trajectories == undisturbed
    assert pool.rollout(groups, LIMITS).trajectories == undisturbed


def test_a_worker_that_died_before_a_publish_comes_back_with_the_new_weights(
    pool: RolloutPool, groups: list[GroupJob], talker: Path
) -> None:
    os.kill(process_id(pool, 0), signal.SIGKILL)
    pool.publish(CheckpointWeights(talker, 8))
    assert versions(pool.rollout(groups, LIMITS).trajectories) == {8}


def test_what_a_worker_raises_is_raised_here_with_its_message(
    pool: RolloutPool, groups: list[GroupJob]
) -> None:
    with pytest.raises(
        EpisodeError, match=r"sample 'scene-\d' of task 'markers' .* no room in max_length = 10"
    ):
        pool.rollout(groups, Limits(5, 10))
    assert len(pool.rollout(groups, LIMITS).trajectories) == 64


@pytest.fixture(scope="module")
def faults(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which tests leave orders for the scripted engine to fail."""
    checkpoint = tmp_path_factory.mktemp("scripted") / "checkpoint"
    shutil.copytree(talker, checkpoint)
    (checkpoint / "faults").mkdir()
    return checkpoint / "faults"


@pytest.fixture(scope="module")
def scripted_pool(setup: RolloutSetup, faults: Path) -> Iterator[RolloutPool]:
    scripted = dataclasses.replace(setup, engine=f"{SCRIPTED}:ScriptedEngine", checkpoint=faults.parent)
    started = RolloutPool(
        scripted, actors=1, use_gpu=False, timeouts=Timeouts(answer=5.0, step=3.0), max_restarts=1
    )
    yield started
    started.close()


@pytest.mark.parametrize(
    ("fault", "says"), [("die", "worker 0 died while"), ("hang", "hangs: its engine has been in one step")]
)
def test_an_engine_that_dies_or_hangs_is_replaced_and_its_groups_repeated(
    scripted_pool: RolloutPool,
    faults: Path,
    groups: list[GroupJob],
    caplog: pytest.LogCaptureFixture,
    fault: str,
    says: str,
) -> None:
    scripted_pool.publish(CheckpointWeights(faults.parent, 3))
    undisturbed = scripted_pool.rollout(groups, LIMITS).trajectories
    (faults / fault).write_text("1")
    assert scripted_pool.rollout(groups, LIMITS).trajectories == undisturbed
    assert says in caplog.text
    assert versions(undisturbed) == {3}


def test_a_frozen_process_is_noticed_and_replaced(
    scripted_pool: RolloutPool, groups: list[GroupJob], caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = scripted_pool.rollout(groups, LIMITS).trajectories
    frozen = process_id(scripted_pool, 0)
    os.kill(frozen, signal.SIGSTOP)
    begun = time.monotonic()
    scripted_pool.probe()
    assert "did not answer within 3 s while generating a token" in caplog.text
    assert scripted_pool.rollout(groups, LIMITS).trajectories == undisturbed
    assert time.monotonic() - begun < 60


def test_a_publish_that_stalls_names_the_worker_within_its_timeout(
    scripted_pool: RolloutPool, faults: Path, groups: list[GroupJob], tmp_path: Path
) -> None:
    scripted_pool.probe()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(150_000_000)  # three seconds at the rate of a slow disk
    (faults / "stall").write_text("1")
    begun = time.monotonic()
    with pytest.raises(PoolError, match="worker 0 did not answer within 8 s while loading version 9"):
        scripted_pool.publish(CheckpointWeights(tmp_path, 9, timeout=5.0))
    assert time.monotonic() - begun < 11
    assert versions(scripted_pool.rollout(groups, LIMITS).trajectories) == {9}


class Fleeting:
    """Weights that only the first to ask can have."""

    def __init__(self, checkpoint: Path, version: int) -> None:
        self._weights, self.version, self.asked = CheckpointWeights(checkpoint, version), version, 0

    def bring(self, workers: Sequence[Actor[InferenceWorker]]) -> None:
        self.asked += 1
        if self.asked > 1:
            raise WeightsSuperseded("the learners have gone on")
        self._weights.bring(workers)


def test_a_successor_waits_for_the_next_weights_where_nobody_has_the_present_ones(
    scripted_pool: RolloutPool, faults: Path, groups: list[GroupJob]
) -> None:
    weights = Fleeting(faults.parent, 20)
    scripted_pool.publish(weights)
    assert versions(scripted_pool.rollout(groups, LIMITS).trajectories) == {20}
    os.kill(process_id(scripted_pool, 0), signal.SIGKILL)
    while weights.asked < 2:
        time.sleep(0.05)
    scripted_pool.probe()  # is over, although the successor does not serve
    scripted_pool.publish(CheckpointWeights(faults.parent, 21))
    assert versions(scripted_pool.rollout(groups, LIMITS).trajectories) == {21}


def test_workers_that_keep_dying_end_the_rollout(
    scripted_pool: RolloutPool, faults: Path, groups: list[GroupJob]
) -> None:
    (faults / "die").write_text("2")
    with pytest.raises(PoolError, match="gave up after losing 2 workers; the last: inference worker 0 died"):
        scripted_pool.rollout(groups, LIMITS)


def test_a_first_step_that_compiles_is_not_taken_for_a_hang(
    setup: RolloutSetup,
    talker: Path,
    groups: list[GroupJob],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(talker, checkpoint)
    (checkpoint / "faults").mkdir()
    (checkpoint / "faults" / "compile").write_text("4")
    scripted = dataclasses.replace(setup, engine=f"{SCRIPTED}:ScriptedEngine", checkpoint=checkpoint)
    started = RolloutPool(
        scripted, actors=1, use_gpu=False, timeouts=Timeouts(start=60.0, step=1.0), max_restarts=0
    )
    try:
        assert len(started.rollout(groups, LIMITS).trajectories) == 64
    finally:
        started.close()
    assert "hangs" not in caplog.text


class SlowConnection(RolloutWorker):
    """A worker whose model takes seconds to download."""

    def fetch(self, checkpoint: Path) -> None:
        time.sleep(6)


class PoolOfSlowConnections(RolloutPool):
    worker_class = SlowConnection


def test_a_download_does_not_count_as_time_to_load(setup: RolloutSetup, faults: Path) -> None:
    scripted = dataclasses.replace(setup, engine=f"{SCRIPTED}:ScriptedEngine", checkpoint=faults.parent)
    limits = Timeouts(fetch=60.0, start=5.0)
    patient = PoolOfSlowConnections(scripted, actors=1, use_gpu=False, timeouts=limits)
    hasty = PoolOfSlowConnections(
        scripted, actors=1, use_gpu=False, timeouts=dataclasses.replace(limits, fetch=1.0)
    )
    try:
        with pytest.raises(PoolError, match="did not answer within 1 s while downloading the model"):
            hasty.probe()
        patient.probe()
    finally:
        patient.close()
        hasty.close()


def test_a_pool_that_is_closed_has_left_the_machine(setup: RolloutSetup, faults: Path) -> None:
    scripted = dataclasses.replace(setup, engine=f"{SCRIPTED}:ScriptedEngine", checkpoint=faults.parent)
    started = RolloutPool(scripted, actors=2, use_gpu=False)
    started.probe()
    processes = [psutil.Process(process_id(started, index)) for index in range(2)]
    processes[0].suspend()  # it hears nothing of what Ray asks of it
    started.close()
    assert [process.is_running() for process in processes] == [False, False]
