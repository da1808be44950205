"""Orders: read in every form, and scored by Kendall's τ as scipy computes it."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from posttrain.types import RewardInput
from rewards.builtin.ordering import ordering

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
THINGS = ["red cup", "blue pen", "old map", "key"]


def value(gold: Any, answer: str, **params: Any) -> float:
    score = ordering(RewardInput((), (), answer, ground_truth=gold), **params)
    assert score is not None
    return score.value


@given(st.permutations(THINGS))
def test_it_is_kendalls_tau(order: list[str]) -> None:
    tau, _ = kendalltau([THINGS.index(thing) for thing in order], range(len(order)))
    assert isinstance(tau, float)
    numbered = "\n".join(f"{i}. {thing}" for i, thing in enumerate(order, 1))
    for answer in (
        json.dumps(order),
        ", ".join(order),
        " -> ".join(order),
        " → ".join(order),
        f"The answer is {'; '.join(order)}.",
        f"<answer>{' > '.join(order)}</answer>",
        f"I saw them in this order:\n{numbered}",
        numbered,
    ):
        assert value(THINGS, answer) == pytest.approx((1 + tau) / 2), answer
        assert value(THINGS, answer, metric="exact") == (order == THINGS)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("BAC", 1),
        ("b, a, c", 1),
        ("B-A-C", 1),
        ("B then A then C", 1),
        (r"\boxed{B, A, C}", 1),
        ("CAB", 0),
        ("ABC", 2 / 3),
        ("B, A", 1 / 3),
        ("B", 0),
        ("", 0),
        ("B, A, C, D", 0),
        ("B, A, C, B, A, C", 0),
        ("B, A, C or C, A, B", 0),
    ],
)
def test_letters(answer: str, expected: float) -> None:
    assert value(["B", "A", "C"], answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    "answer",
    [
        "The order is red cup, blue pen, old map, key.",
        "red cup, blue pen, old map, and key",
        "First red cup, then blue pen, then old map, and finally key.",
        "Order: red cup; blue pen; old map; key",
        "I saw the red cup first.\nThe answer is: red cup > blue pen > old map > key",
        "先red cup，然后blue pen，再old map，最后key",
    ],
)
def test_sentences(answer: str) -> None:
    assert value(THINGS, answer) == 1


@pytest.mark.parametrize("gold", ["A", ["A"], ["A", "a"], [], [["A"], "B"], {"order": ["A"]}])
def test_faults_of_the_dataset_are_named(gold: Any) -> None:
    with pytest.raises(ValueError, match="ground_truth"):
        value(gold, "A, B")


def test_wrong_metrics_are_refused_and_no_gold_does_not_apply() -> None:
    with pytest.raises(ValueError, match="metric"):
        value(["A", "B"], "A, B", metric="tau")
    assert ordering(RewardInput((), (), "A, B")) is None


@given(TEXT)
def test_any_text_is_judged(text: str) -> None:
    assert 0 <= value(THINGS, text) <= 1


@pytest.mark.parametrize("unit", ["A,", "\n", "then", " - ", "1. A\n", "[", " "])
def test_long_answers_are_quick(unit: str) -> None:
    start = time.process_time()
    assert value(["A", "B"], unit * (10**6 // len(unit))) == 0
    assert time.process_time() - start < 2
