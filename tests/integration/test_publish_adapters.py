"""Adapters alone are published: each version arrives, and one that is not applied is noticed at once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from posttrain.inference.engine import AdapterSlots, EngineUse
from posttrain.inference.worker import InferenceWorker
from posttrain.models.lora import write_merged
from posttrain.rendering.rendering import Renderer
from posttrain.run.actors import kill_all
from posttrain.training.on_policy.learner_group import LearnerGroup
from posttrain.training.on_policy.proof import ProofFailed, prompt_sequences
from posttrain.types import Sample, Trajectory
from tests.integration.publish_parts import MODEL, Engines, learn, make_stage, publisher, start_engines

RANK = 4
Scores = list[list[list[float]]]


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
    healthy: Engines,
    learners: LearnerGroup,
    sequences: list[Trajectory],
    talker: Path,
    make_talker: Callable[..., Path],
    rate: float,
    soak: bool,
    tmp_path: Path,
) -> None:
    """At a rate of next to nothing every version serves the same, bit for bit."""
    publishing = publisher(learners, healthy, sequences, adapters_of=talker)
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
    # As an engine that replaces another and began with the weights of an earlier stage.
    worker = healthy.workers[0]
    ray.get(worker.call(InferenceWorker.load_weights, make_talker(1), 90), timeout=60)
    healthy.published[-1].bring([worker])
    assert healthy.score(sequences) == before
    # Merged by PEFT and read from a disk, the same adapters say the same of the same tokens.
    learners.write_checkpoint(tmp_path / "adapters")
    write_merged(tmp_path / "adapters", tmp_path / "merged")
    ray.get(worker.call(InferenceWorker.load_weights, tmp_path / "merged", 91), timeout=60)
    merged = healthy.score(sequences)
    ray.get(worker.call(InferenceWorker.load_weights, talker, 92), timeout=60)
    learned = largest_gap(before, healthy.score(sequences))
    assert largest_gap(before, merged) < 1e-5
    assert learned > 1e-3 if rate == 1e-3 else learned < 1e-5


def largest_gap(one: Scores, other: Scores) -> float:
    """Return the largest difference of the first worker's scores."""
    return max(abs(a - b) for x, y in zip(one[0], other[0], strict=True) for a, b in zip(x, y, strict=True))


def test_an_adapter_that_is_dropped_is_found_by_the_canary_and_not_without(
    healthy: Engines, talker: Path, sequences: list[Trajectory]
) -> None:
    learners = LearnerGroup(MODEL, make_stage(lora={"rank": RANK}), talker, resume=False, use_gpu=False)
    try:
        publishing = publisher(learners, healthy, sequences, adapters_of=talker)
        publishing.publish(60)
        healthy.faults[0].write_text("dropped adapter")
        publishing.publish(61)  # a fresh adapter changes nothing, so nobody can tell
        with pytest.raises(ProofFailed, match=r"published twice.*older ones, a part of them, or no adapter"):
            publishing.canary(62)
        healthy.faults[0].unlink()
        publishing.canary(63)
    finally:
        learners.close()
