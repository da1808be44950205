"""Adapters alone are published: each version arrives, and one that is not applied is noticed at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.inference.engine import AdapterSlots, EngineUse
from posttrain.rendering.rendering import Renderer
from posttrain.run.actors import kill_all
from posttrain.training.on_policy.learner_group import LearnerGroup
from posttrain.training.on_policy.proof import ProofFailed, prompt_sequences
from posttrain.types import Sample, Trajectory
from tests.integration.publish_parts import MODEL, Engines, learn, make_stage, publisher, start_engines

RANK = 4


@pytest.fixture(scope="module")
def engines(ray_cluster: None, talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    use = EngineUse(adapters=AdapterSlots(rank=RANK, resident=2))
    engines = start_engines(talker, [tmp_path_factory.mktemp("faults") / "0"], use)
    yield engines
    kill_all(engines.workers)


@pytest.fixture
def healthy(engines: Engines) -> Iterator[Engines]:
    yield engines
    for path in engines.faults:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module", params=[1e-3, 1e-30])
def rate(request: pytest.FixtureRequest) -> float:
    return request.param


@pytest.fixture(scope="module")
def learners(ray_cluster: None, talker: Path, rate: float) -> Iterator[LearnerGroup]:
    stage = make_stage(lora={"rank": RANK}, learning_rate=rate)
    group = LearnerGroup(MODEL, stage, talker, resume=False, use_gpu=False)
    yield group
    group.close()


@pytest.fixture(scope="module")
def sequences(samples: list[Sample], renderer: Renderer) -> list[Trajectory]:
    return prompt_sequences(samples[:3], renderer)


def test_adapters_follow_the_learners(
    healthy: Engines, learners: LearnerGroup, sequences: list[Trajectory], rate: float, soak: bool
) -> None:
    """At a rate of next to nothing every version serves the same, bit for bit."""
    publishing = publisher(learners, healthy, sequences, adapters=True)
    publishing.canary(1)
    random = healthy.score(sequences)
    assert publishing.publish(2)["publish/proof_gap"] < 1e-5
    before = healthy.score(sequences)
    assert before != random
    for version in range(3, 53 if soak else 6):
        learn(learners, sequences)
        metrics = publishing.publish(version)
        assert metrics["publish/proof_gap"] < 1e-5
        assert metrics["publish/repeated"] == 0
        after = healthy.score(sequences)
        assert (after == before) == (rate < 1e-20)
        before = after


def test_an_adapter_that_is_dropped_is_found_by_the_canary_and_not_without(
    healthy: Engines, talker: Path, sequences: list[Trajectory]
) -> None:
    learners = LearnerGroup(MODEL, make_stage(lora={"rank": RANK}), talker, resume=False, use_gpu=False)
    try:
        publishing = publisher(learners, healthy, sequences, adapters=True)
        publishing.publish(60)
        healthy.faults[0].write_text("dropped adapter")
        publishing.publish(61)  # a fresh adapter changes nothing, so nobody can tell
        with pytest.raises(ProofFailed, match=r"published twice.*older ones, a part of them, or no adapter"):
            publishing.canary(62)
        healthy.faults[0].unlink()
        publishing.canary(63)
    finally:
        learners.close()
