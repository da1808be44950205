"""The mathematics reward: what is equal, what only looks equal, and what must not be computed."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.math import math


def score(gold: Any, answer: str) -> float:
    result = math(RewardInput((), (), answer, ground_truth=gold))
    assert result is not None
    return result.value


EQUAL = [
    ("\\frac{1}{3}", "The answer is $1/3$."),
    ("1/3", "0.333333"),
    (42, "<think>six times seven</think>So \\boxed{42}"),
    ("2", ["3", "2"]),
    ("1,000", "1000"),
    ("-5", "−5"),
    ("2^10", "1024"),
    ("2^{-10}", "2^-10"),
    ("x^{11}", "x^(10+1)"),
    ("x^2y", "yx^2"),
    ("x^2+2x+1", "(x+1)^2"),
    ("\\sqrt{8}", "2\\sqrt2"),
    ("e^{x^2}", "\\exp(x^2)"),
    ("0", "\\sin(1)^2+\\cos(1)^2-1"),
    ("3\\frac{1}{2}", "7/2"),
    ("50\\%", "0.5"),
    ("50\\%", "50"),
    ("12 cm", "12"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("2x+3y=6", "4x+6y=12"),
    ("y=2x", "2x=y"),
    ("f(x)=x+1", "f(x)=1+x"),
    ("x<3", "3>x"),
    ("\\{1,2\\}", "2, 1"),
    ("\\pm 2", "2, -2"),
    ("[0,1]\\cup[2,3]", "[2,3]\\cup[0,1]"),
    ("(1,2)", "(1, 2)"),
    ("\\infty", "+\\infty"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}"),
    ("12:30", "12 : 30"),
    ("no solution", "No solution"),
]
DIFFERENT = [
    ("1/2^99", "1/2^98"),
    ("1/2^{99}", "1/2^{98}"),
    ("\\{1/2^{99}\\}", "\\{1/2^{98}\\}"),
    ("0.0000001", "0.0000002"),
    ("10^15", "10^15+1"),
    ("2021", "±2021"),
    ("±2021", "2021"),
    ("2021", "\\pm 2021"),
    ("12:00", "1:00"),
    ("1:2", "2:4"),
    ("x^2+1=0", "x^2+2=0"),
    ("0=0", "1=1"),
    ("y=2x", "y=3x"),
    ("x=5", "y=5"),
    ("x<3", "x>3"),
    ("x<3", "x\\le 3"),
    ("(1,2)", "(1,2]"),
    ("x^2y", "x^{2y}"),
    ("x+1", "y+1"),
    ("f'", "f"),
    ("5!", "5"),
    ("hello", "ohell"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "[1, 2]"),
    ("5", "\\boxed{4} or 5?"),
    ("5", "4, 5, 6"),
    ("5", ""),
]
ATTACKS = [
    "__import__('os').system('touch pwn')",
    "[].__class__.__base__.__subclasses__()",
    "\\pi; import os",
    "9**9**9**9",
    "9^{9^{9^{9}}}",
    "2^{99999999}",
    "(10^9)!",
    "1000000000!",
    "1" * 5000,
    "{" * 100_000,
    "{" * 400 + "5" + "}" * 400,
    "(" * 400 + "5" + ")" * 400,
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal(gold: Any, answer: Any) -> None:
    gold, answer = (answer, gold) if isinstance(answer, list) else (gold, answer)
    assert score(gold, answer) == 1.0


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(gold: str, answer: str) -> None:
    assert score(gold, answer) == 0.0


@pytest.mark.parametrize("answer", ATTACKS, ids=lambda text: text[:20])
def test_attacks_earn_nothing_and_cost_nothing(answer: str) -> None:
    begun = time.perf_counter()
    assert score("5", answer) == 0.0
    assert time.perf_counter() - begun < 2


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6), st.integers(-3, 3), st.integers(1, 5))
def test_fractions_are_compared_exactly(numerator: int, denominator: int, shift: int, factor: int) -> None:
    gold = f"\\frac{{{numerator}}}{{{denominator}}}"
    answer = f"${(numerator + shift) * factor}/{denominator * factor}$"
    assert score(gold, gold) == 1.0
    assert score(gold, answer) == float(shift == 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_small_powers_are_not_all_zero(first: int, second: int) -> None:
    assert score(f"2^{{-{first}}}", f"1/2^{second}") == float(first == second)


@settings(max_examples=60, deadline=None)
@given(st.text("0123456789+-*/^=.,:(){}xyi \\", max_size=30))
def test_any_text_gets_a_score_in_range(answer: str) -> None:
    assert score("5", answer) in (0.0, 1.0)


def test_ground_truth_that_is_missing_or_broken() -> None:
    assert math(RewardInput((), (), "5")) is None
    with pytest.raises(ValueError, match="ground_truth"):
        score("", "5")
