"""What is bounded or one of several guesses is no open answer of MMMU."""

import pytest

from posttrain.types import RewardInput
from rewards.builtin.short_answers import mmmu_open


def value(gold: str, answer: str) -> float:
    score = mmmu_open(RewardInput((), (), answer, ground_truth=gold))
    assert score is not None
    return score.value


@pytest.mark.parametrize(
    "answer",
    [
        "4.5 or 4.6", "either 4.5 or 5", "between 4 and 4.5", "from 4.5 to 5", "4.4, 4.5", "4.5 and 5.5",
        "4.5–5",
        "at least 4.5", "The speed is more than 4.5", "≥4.5", "up to 4.5", "4.5 is wrong", "超过4.5",
        "4.5以上",
    ],
)  # fmt: skip
def test_mmmu_bounds_and_guesses_are_no_answer(answer: str) -> None:
    assert value("4.5", answer) == 0


@pytest.mark.parametrize(
    "answer", ["Renaissance or Baroque", "Baroque, Renaissance", "Gothic and Renaissance"]
)
def test_mmmu_lists_of_names_are_no_answer(answer: str) -> None:
    assert value("Renaissance", answer) == 0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("the valve between the atrium and the ventricle, the mitral valve", "mitral valve"),
        ("red or blue", "red or blue"), ("at least 4", "at least 4"), ("1, 2", "1, 2"),
        ("It is 4.5 m/s.", "4.5"),
    ],
)  # fmt: skip
def test_mmmu_answers_that_only_look_so(answer: str, gold: str) -> None:
    assert value(gold, answer) == 1
