"""The proof of a publish: which sequences it takes, and what it calls a failure."""

from dataclasses import replace

import pytest

from posttrain.training.on_policy.proof import TOKENS, Proof, proof_sequences
from posttrain.types import ImageRef, Trajectory, TrajectoryImage


def sequence(length: int, episode: int = 0, image: bool = False, sampled: bool = True) -> Trajectory:
    images = [TrajectoryImage(ImageRef("picture.png", "0" * 64), 0, 1)] if image else []
    return Trajectory(
        sample_id=str(episode),
        task="markers",
        group=0,
        episode=episode,
        token_ids=list(range(length)),
        sampled=[False, False] + [sampled] * (length - 2),
        images=images,
    )


def test_the_shortest_are_chosen_and_one_with_an_image_among_them() -> None:
    batch = [sequence(10 + n, episode=n) for n in range(8)] + [sequence(90, episode=8, image=True)]
    chosen = proof_sequences(batch[::-1])
    assert [each.episode for each in chosen] == [8, 0, 1, 2]


def test_sequences_without_a_sampled_token_are_not_chosen() -> None:
    assert proof_sequences([sequence(9, sampled=False)]) == []
    assert len(proof_sequences([sequence(9, sampled=False), sequence(9)])) == 1


def test_a_proof_stays_short() -> None:
    long = [sequence(TOKENS - 5, episode=n) for n in range(3)]
    assert len(proof_sequences(long)) == 1
    assert len(proof_sequences([sequence(4, episode=9), *long])) == 2


@pytest.fixture
def proof() -> Proof:
    picture, text = sequence(6, image=True), sequence(5, episode=1)
    return Proof([picture, text], lambda _: [[-1.0] * 4, [-2.0] * 3], tolerance=1e-3, exact=True)


#: What an engine returns: log-probs of all tokens but the first, of which the learners compare the sampled.
RIGHT = [[-9.0, -1.0, -1.0, -1.0, -1.0], [-9.0, -2.0, -2.0, -2.0]]


def test_log_probs_within_the_tolerance_prove_it(proof: Proof) -> None:
    assert proof.failure(RIGHT) is None
    assert proof.failure([RIGHT[0], [-9.0, -2.0, -2.0005, -2.0]]) is None


def test_one_token_that_is_off_disproves_it_in_float32_and_the_mean_decides_in_bfloat16(proof: Proof) -> None:
    off = [RIGHT[0], [-9.0, -2.0, -2.004, -2.0]]
    told = proof.failure(off)
    assert told is not None
    assert "differ from the learners' by 4.00e-03" in told
    assert "0.00e+00 with an image, 4.00e-03 without an image at most" in told
    assert "it serves other weights than these" in told
    mean = replace(proof, exact=False)
    assert mean.failure(off) is None
    assert "in the mean" in (mean.failure([[-9.0, -1.1, -1.1, -1.1, -1.1], RIGHT[1]]) or "")


def test_images_alone_that_are_off_point_to_a_cache(proof: Proof) -> None:
    told = proof.failure([[-9.0, -1.0, -1.0, -1.2, -1.0], RIGHT[1]])
    assert told is not None
    assert "it sees images through older weights" in told


def test_scores_that_are_no_numbers_disprove_it(proof: Proof) -> None:
    assert proof.failure([[-9.0, float("nan"), -1.0, -1.0, -1.0], RIGHT[1]]) is not None
