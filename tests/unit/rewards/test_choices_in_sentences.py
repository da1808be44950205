"""Which option a sentence chooses, with options as MMMU and MathVista have them."""

import pytest

from posttrain.types import RewardInput
from rewards.builtin.multiple_choice import multiple_choice

VALVES = ["Mitral valve", "Tricuspid valve", "Aortic valve", "Cannot be determined"]
LENGTHS = ["1.5 × 10⁻³ m", "1.5 × 10³ m", "3/2", "-1.5"]


def value(gold: str, answer: str, options: list[str]) -> float:
    score = multiple_choice(RewardInput((), (), answer, ground_truth=gold, columns={"choices": options}))
    assert score is not None
    return score.value


@pytest.mark.parametrize(
    ("gold", "answer", "options"),
    [
        ("B", "Based on the image, the correct option is B.", VALVES),
        ("B", "Given its leaflets, the best choice would be (B).", VALVES),
        ("B", "所以选择B选项。", VALVES),
        ("B", "Looks like B", VALVES),
        ("B", "The structure shown is the tricuspid valve.", VALVES),
        ("D", "It cannot be determined.", VALVES),
        ("D", "This cannot be determined", VALVES),
        ("A", "$1.5 \\times 10^{-3}$ m", LENGTHS),
        ("A", "The length is $1.5 \\times 10^{-3}$ m.", LENGTHS),
        ("D", "The value is −1.5", LENGTHS),
        ("B", "Yes, it does.", ["No", "Yes"]),
        ("A", "No, there is none.", ["No", "Yes"]),
    ],
)
def test_a_sentence_chooses(gold: str, answer: str, options: list[str]) -> None:
    assert value(gold, answer, options) == 1.0
    for other in {"A", "B", "C", "D"}.intersection("AB" if len(options) == 2 else "ABCD") - {gold}:
        assert value(other, answer, options) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "The correct option is not B.", "The wrong option is B",
        "The structure shown is not the tricuspid valve.",
        "It is the mitral valve or is the tricuspid valve", "The best choice is B or C",
        "Doesn't look like B",
        "The mitral valve is next to what is the tricuspid valve", "Yes and no",
    ],
)  # fmt: skip
def test_a_sentence_that_denies_or_names_two_chooses_nothing(answer: str) -> None:
    assert value("B", answer, VALVES) == 0.0
