"""Multiple choice: letters, several letters, and the options' texts."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.multiple_choice import multiple_choice

CITIES = {"A": "Paris", "B": "London", "C": "Berlin"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def score(gold: Any, answer: str, choices: Any = None) -> float:
    columns = {} if choices is None else {"choices": choices}
    result = multiple_choice(RewardInput((), (), answer, ground_truth=gold, columns=columns))
    assert result is not None
    return result.value


@pytest.mark.parametrize(
    "answer", ["B", "(b)", "B. red", "\\boxed{\\text{(B)}}", "So the answer is B.", "故选：B。"]
)
def test_a_letter(answer: str) -> None:
    assert score("B", answer) == 1.0
    assert score("C", answer) == 0.0


@pytest.mark.parametrize(
    "answer", ["ABCD", "A, B", "(A) (B) (C) (D)", "A or B", "A. x B. y", "Because", "B, B", ""]
)
def test_hedges_and_nothing(answer: str) -> None:
    assert score("B", answer) == 0.0


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("A, C", 1),
        ("CA", 1),
        ("A and C", 1),
        ("A、C", 1),
        ("A", 0),
        ("A or C", 0),
        ("ABC", 0),
        ("A, B, C, D", 0),
    ],
)
def test_several_letters(answer: str, value: float) -> None:
    assert score(["A", "C"], answer) == value


@pytest.mark.parametrize("choices", [CITIES, list(CITIES.values()), ["A. Paris", "B. London", "C. Berlin"]])
def test_the_text_of_an_option(choices: Any) -> None:
    assert (
        score("A", "Paris", choices)
        == score("A", "A. Paris", choices)
        == score("A", "It is Paris.", choices)
        == 1.0
    )
    assert (
        score("A", "London", choices)
        == score("A", "A. London", choices)
        == score("A", "Paris or London", choices)
        == 0.0
    )
    assert score(["A", "B"], "Paris, London", choices) == 1.0


def test_an_option_that_is_a_number_may_be_written_in_another_way() -> None:
    assert score("B", "0.5", ["1/3", "\\frac{1}{2}", "2"]) == 1.0
    assert score("B", "5", ["5 m", "5 km"]) == 0.0


@given(st.sampled_from("ABCDEFGH"), TEXT)
def test_gold_earns_everything_and_nothing_earns_nothing(gold: str, other: str) -> None:
    assert score(gold, gold) == score(gold, f" \n{gold}\t") == 1.0
    assert score(gold, "") == 0.0
    assert score(gold, other) == score(gold, f"\n {other} ") in (0.0, 1.0)
    assert score("A", other, CITIES) in (0.0, 1.0)


@pytest.mark.parametrize("gold", ["", "AC", 1, [], ["A", 2], "yes", {"A": 1}])
def test_a_ground_truth_that_is_no_letter_is_an_error(gold: Any) -> None:
    with pytest.raises(ValueError, match="ground_truth"):
        score(gold, "A")


@pytest.mark.parametrize(
    "choices", ["Paris", [], ["x", "x"], {"A": "", "B": "y"}, {"AB": "x"}, [["x"]], ["x"] * 27]
)
def test_options_that_are_no_options_are_an_error(choices: Any) -> None:
    with pytest.raises(ValueError, match="choices"):
        score("A", "A", choices)


def test_a_ground_truth_that_is_no_option_is_an_error_and_none_does_not_apply() -> None:
    with pytest.raises(ValueError, match="choices"):
        score("D", "A", CITIES)
    assert multiple_choice(RewardInput((), (), "A")) is None


@pytest.mark.parametrize(
    "answer", ["A , B , " * 100 + "!", "( A ) " * 150 + "!", "A" * 900, "A. " * 300, "\\boxed{" * 5000]
)
def test_hostile_texts_cost_nothing(answer: str) -> None:
    begun = time.thread_time()
    assert score("B", answer, CITIES) == 0.0
    assert time.thread_time() - begun < 1
