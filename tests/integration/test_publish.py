"""Learners and engines together: every publish arrives whole, and one that does not is named."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import AutoModelForImageTextToText

from posttrain.inference.engine import EngineUse
from posttrain.inference.weights import PublishError, WeightsSuperseded
from posttrain.inference.worker import InferenceWorker
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.run.actors import kill_all
from posttrain.training.on_policy.learner_group import LearnerGroup
from posttrain.training.on_policy.proof import Proof, ProofFailed, prompt_sequences
from posttrain.training.on_policy.publishing import LearnerLink, LearnerWeights
from posttrain.types import Block, Message, Sample, Trajectory, VideoRef, text_message
from tests.integration.faulty_engine import STALL_S
from tests.integration.publish_parts import MODEL, Engines, learn, make_stage, publisher, start_engines

#: Seconds that a peer may stall in these tests; and those in which everything else must be over.
LIMIT_S, SLACK_S = 3.0, 30.0


@pytest.fixture(scope="module")
def engines(ray_cluster: None, talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    faults = [tmp_path_factory.mktemp("faults") / str(index) for index in range(2)]
    engines = start_engines(talker, faults, EngineUse(transfer="gloo"))
    yield engines
    kill_all(engines.workers)


@pytest.fixture
def healthy(engines: Engines) -> Iterator[Engines]:
    yield engines
    for path in engines.faults:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def learners(ray_cluster: None, talker: Path) -> Iterator[LearnerGroup]:
    """Two ranks that hold half of the weights each, and compute their layers twice."""
    stage = make_stage(num_workers=2, sharding="fsdp2", gradient_checkpointing=True)
    group = LearnerGroup(MODEL, stage, talker, resume=False, use_gpu=False)
    yield group
    group.close()


@pytest.fixture(scope="module")
def sequences(samples: list[Sample], renderer: Renderer, clips: list[VideoRef]) -> list[Trajectory]:
    """Prompts with an image, one with a video, and one of text alone."""
    question = Sample("text", (text_message("user", "How many markers are there?"),))
    film = Sample("film", (Message("user", (Block("video", video=clips[0]),)),))
    return prompt_sequences([*samples[:2], film, question], renderer)


def test_ten_publishes_of_sharded_learners(
    healthy: Engines,
    learners: LearnerGroup,
    sequences: list[Trajectory],
    renderer: Renderer,
    tmp_path: Path,
) -> None:
    publishing = publisher(learners, healthy, sequences)
    before = healthy.score(sequences)
    for version in range(1, 11):
        learn(learners, sequences)
        begun = time.monotonic()
        metrics = publishing.publish(version)
        assert time.monotonic() - begun < 60
        assert metrics["publish/repeated"] == 0
        assert metrics["publish/proof_gap"] < 1e-5
        after = healthy.score(sequences)
        assert after[0] == after[1]
        assert max(abs(a - b) for a, b in zip(after[0][0], before[0][0], strict=True)) > 1e-3
        before = after
    learners.write_checkpoint(tmp_path)
    truth = scored_by_transformers(tmp_path, sequences, renderer)
    for scored, expected in zip(before[0], truth, strict=True):
        assert scored == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def scored_by_transformers(
    checkpoint: Path, sequences: Sequence[Trajectory], renderer: Renderer
) -> list[list[float]]:
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    scores = []
    for sequence in sequences:
        logprobs = model(**collate([sequence], renderer)).logits[0].log_softmax(-1)
        ids = torch.tensor(sequence.token_ids)
        scores.append(logprobs[:-1].gather(1, ids[1:, None])[:, 0].tolist())
    return scores


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("withheld", "it serves other weights than these"),
        ("half", "it serves other weights than these"),
        ("stale images", "it sees images through older weights"),
    ],
)
def test_an_engine_that_serves_other_weights_is_named_after_a_second_publish(
    healthy: Engines, learners: LearnerGroup, sequences: list[Trajectory], fault: str, said: str
) -> None:
    publishing = publisher(learners, healthy, sequences)
    publishing.publish(20)
    learn(learners, sequences)
    healthy.faults[1].write_text(fault)
    with pytest.raises(ProofFailed, match=f"published twice, and inference worker 1 does not.*{said}"):
        publishing.publish(21)
    assert healthy.published[-1].repeated == 1  # pyright: ignore[reportAttributeAccessIssue]
    healthy.faults[1].unlink()
    assert publishing.publish(22)["publish/proof_gap"] < 1e-5


def test_a_publish_that_goes_wrong_once_is_repeated_and_told(
    healthy: Engines, learners: LearnerGroup, sequences: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = publisher(learners, healthy, sequences)
    publishing.publish(30)
    learn(learners, sequences)
    healthy.faults[0].write_text("withheld")
    prove = LearnerWeights._prove

    def mend(self: LearnerWeights, *arguments: Any) -> Any:
        found = prove(self, *arguments)
        healthy.faults[0].unlink(missing_ok=True)
        return found

    monkeypatch.setattr(LearnerWeights, "_prove", mend)
    assert publishing.publish(31)["publish/repeated"] == 1


def test_an_engine_that_stalls_halfway_is_named_in_time_and_the_others_serve(
    healthy: Engines, learners: LearnerGroup, sequences: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.training.on_policy.publishing.GRACE_S", 1.0)
    learn(learners, sequences)
    link = LearnerLink(learners, "gloo", timeout=LIMIT_S)
    proof = Proof(sequences, learners.score, 1e-4, exact=True)
    weights = LearnerWeights(link, learners, 40, proof)
    healthy.faults[1].write_text("stalls")
    begun = time.monotonic()
    with pytest.raises(
        PublishError, match=r"worker 1 did not answer within .* while receiving version 40"
    ) as lost:
        weights.bring(healthy.workers)
    assert time.monotonic() - begun < SLACK_S
    assert set(lost.value.reasons) == {1}
    served = ray.get(healthy.workers[0].call(InferenceWorker.score, sequences), timeout=60)
    assert proof.failure(served) is None
    healthy.faults[1].unlink()
    time.sleep(STALL_S)
    weights.bring([healthy.workers[1]])  # what it holds in part is brought again from the start
    assert proof.failure(healthy.score(sequences)[1]) is None


def test_weights_that_the_learners_have_left_are_not_brought(
    healthy: Engines, learners: LearnerGroup, sequences: list[Trajectory]
) -> None:
    weights = LearnerWeights(LearnerLink(learners, "gloo", LIMIT_S), learners, 50, None)
    learn(learners, sequences)
    with pytest.raises(WeightsSuperseded, match="gone on"):
        weights.bring(healthy.workers[:1])


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_rate_of_next_to_nothing_leaves_weights_and_scores_as_they_are(
    healthy: Engines, talker: Path, sequences: list[Trajectory], soak: bool, lora: dict[str, int] | None
) -> None:
    """Also of adapters that are merged into the weights which travel."""
    stage = make_stage(learning_rate=1e-30, lora=lora)
    learners = LearnerGroup(MODEL, stage, talker, resume=False, use_gpu=False)
    try:
        publishing = publisher(learners, healthy, sequences)
        publishing.publish(60)
        first, known = healthy.score(sequences), learners.score(sequences)
        for version in range(61, 111 if soak else 63):
            learn(learners, sequences)
            publishing.publish(version)
            assert learners.score(sequences) == known
            assert healthy.score(sequences) == first
    finally:
        learners.close()


def test_merged_adapters_arrive(healthy: Engines, talker: Path, sequences: list[Trajectory]) -> None:
    stage = make_stage(lora={"rank": 4})
    learners = LearnerGroup(MODEL, stage, talker, resume=False, use_gpu=False)
    try:
        publishing = publisher(learners, healthy, sequences)
        publishing.publish(65)
        before = healthy.score(sequences)
        publishing.canary(66)
        changed = healthy.score(sequences)
        assert max(abs(a - b) for a, b in zip(changed[0][0], before[0][0], strict=True)) > 1e-3
        publishing.publish(67)
        assert healthy.score(sequences) == before
        healthy.faults[0].write_text("withheld")
        with pytest.raises(ProofFailed, match="inference worker 0 does not serve it"):
            publishing.canary(68)
    finally:
        learners.close()


def test_an_engine_that_dies_halfway_is_named_and_the_others_serve(
    healthy: Engines, learners: LearnerGroup, sequences: list[Trajectory]
) -> None:
    """The last test, since nobody replaces the engine."""
    learn(learners, sequences)
    proof = Proof(sequences, learners.score, 1e-4, exact=True)
    weights = LearnerWeights(LearnerLink(learners, "gloo", timeout=LIMIT_S), learners, 70, proof)
    healthy.faults[1].write_text("dies")
    begun = time.monotonic()
    with pytest.raises(PublishError, match=r"worker 1 died while receiving version 70") as lost:
        weights.bring(healthy.workers)
    assert time.monotonic() - begun < SLACK_S
    assert set(lost.value.reasons) == {1}
    served = ray.get(healthy.workers[0].call(InferenceWorker.score, sequences), timeout=60)
    assert proof.failure(served) is None
