import pytest

from posttrain.training.on_policy.controller import step_or_repeat
from posttrain.training.on_policy.learner import PolicyMismatch


def run(faults: int) -> tuple[dict[str, float], list[str]]:
    """A step that engine and learner disagree on `faults` times, and what happened in which order."""
    events: list[str] = []

    def step() -> dict[str, float]:
        events.append("step")
        if events.count("step") <= faults:
            raise PolicyMismatch("they differ")
        return {"loss": 1.0}

    return step_or_repeat(step, lambda: events.append("publish")), events


def test_a_step_on_which_they_agree_is_taken_once():
    assert run(0) == ({"loss": 1.0, "publish/repeated": 0.0}, ["step"])


def test_a_disagreement_is_healed_by_a_new_publish_and_told():
    assert run(1) == ({"loss": 1.0, "publish/repeated": 1.0}, ["step", "publish", "step"])


def test_a_second_disagreement_ends_the_run():
    with pytest.raises(PolicyMismatch, match="they differ"):
        run(2)
