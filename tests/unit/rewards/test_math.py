"""The mathematics reward: what is equal, what only looks equal, and what must not be computed."""

import itertools
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify
from sympy.parsing import sympy_parser

from posttrain.types import RewardInput
from rewards.builtin.math import math


def score(gold: Any, answer: str, **params: Any) -> float:
    result = math(RewardInput((), (), answer, ground_truth=gold), **params)
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
    ("no solution", "\\emptyset"),
    ("x=1, y=2", "y=2 and x=1"),
    ("1, 2", "\\boxed{1} or \\boxed{2}"),
    ("(x, y) = (1, 2)", "(1, 2)"),
    ("[2, \\infty)", "x >= 2"),
    ("(-\\infty,-1)\\cup(1,\\infty)", "x<-1 or x>1"),
    ("5 km", "5000 m"),
    ("20 m/s", "72 km/h"),
    ("12 平方厘米", "12 cm²"),
    ("30°", "\\pi/6"),
    ("$5", "500 cents"),
    ("3:30 PM", "15:30"),
    ("1.6e-19", "1.6×10⁻¹⁹ C"),
    ("1 1/2", "1.5"),
    ("0.\\overline{3}", "1/3"),
    ("\\sqrt{13}", "By Pythagoras, $c = \\sqrt{13} \\approx 3.606$."),
    ("-i", "i^3"),
    ("24", "Therefore, the area is 24 square units."),
    ("5", "答：小明一共有5个苹果。"),
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
    ("5", "4 = 5"),
    ("5", "x > 4"),
    ("5", "\\boxed{4} or \\boxed{5}"),
    ("5", "2x = 5"),
    ("0", "x^2 - 4 = 0"),
    ("x=0", "x^2=0"),
    ("12 cm", "12 m"),
    ("30°", "30 radians"),
    ("5050", "\\sum_{k=1}^{100} k"),
    ("1/3", "\\int_0^1 x^2 dx"),
    ("-2", "\\det\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
    ("1/2", "3^{\\infty 2}"),
    ("1/2", "\\frac{1}{2}n(n+\\tan}"),
    ("12", "1 2"),
    ("x=1, y=2", "(2, 1)"),
    ("\\{1,2\\}", "(1,2)"),
    ("\\emptyset", "\\{\\emptyset\\}"),
    ("7", "not 7"),
    ("5", "The answer is 4 or 5."),
    ("3:30 PM", "3:30 AM"),
    ("1011_2", "1011_3"),
]
LATEX = (
    "\\frac{ } { ( ) [ ] x y i e 2 3 10 99 ^ ^{ _ \\sqrt{ \\sin \\log_ \\ln \\pi \\infty \\pm \\cup "
    "\\in \\le < > = + - / ! \\binom{ | , ; . % ° $ \\text{cm} \\cdot \\begin{pmatrix} \\end{pmatrix} & "
    "\\\\ \\{ \\} \\lfloor \\mathbb{R} \\emptyset \\setminus ' : \\neq \\approx \\Gamma( \\zeta( \\cosh "
    "\\frac{d}{dx} a_1 \\pmod km or and \\boxed{ "
).split()
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
    "((10!)!)!",
    "(2^{9999})^{9999}",
    "\\binom{10^9}{500000000}",
    "(x+y+z)^{99999999}",
    "x^{x^{x^{x^{x}}}} = 5",
    "e^{e^{e^{e^{9}}}}",
    "\\sin(\\tan(-4x^2-3)^3)",
    "\\int\\int e^{x^x} dx dx",
    "\\frac{d}{dx} 1 / 0.000m^3",
    "\\log\\arcsin3",
    "=",
    "\\approx",
    "0.0}58",
    "x < i",
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
    begun = time.process_time()
    assert score("5", answer) == 0.0
    assert time.process_time() - begun < 2


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


@pytest.mark.parametrize("pieces", [3, 8, 14])
def test_any_latex_gets_a_score_whatever_the_reference(pieces: int) -> None:
    shuffled = random.Random(pieces)
    for _ in range(400):
        answer = "".join(shuffled.choice(LATEX) for _ in range(pieces))
        gold = shuffled.choice(
            ["5", "x^2+1", "(1,2)", "\\{1,2\\}", "[0,1]", "x=5", "x<3", "3+4i", "\\mathbb{R}", "12 cm"]
        )
        assert score(gold, answer) in (0.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.text("0123456789+-^=.,(){}x %$", max_size=20))
def test_white_space_around_an_answer_changes_nothing(answer: str) -> None:
    assert score("5", answer) == score("5", f"\n  {answer}\t ")


@settings(max_examples=60, deadline=None)
@given(st.decimals(-(10**6), 10**6, allow_nan=False, places=4), st.sampled_from([0.0, 0.001, 0.05]))
def test_tolerance_is_relative(number: Any, tolerance: float) -> None:
    inside, outside = float(number) * (1 + tolerance / 2), float(number) * (1 + 2 * tolerance + 0.001)
    assert score(str(number), f"{inside:.12f}", tolerance=tolerance) == 1.0
    assert score(str(number), f"{outside:.12f}", tolerance=tolerance) == float(number == 0)


def test_numbers_agree_with_math_verify_where_it_is_right() -> None:
    texts = [
        "3",
        "-3",
        "1/2",
        "0.5",
        "\\frac{3}{6}",
        "\\sqrt{4}",
        "2",
        "2\\sqrt{2}",
        "\\sqrt{8}",
        "\\pi",
        "0.125",
        "2^3",
    ]
    for gold, answer in itertools.product(texts, texts):
        direct = verify(parse(f"${gold}$"), parse(f"${answer}$"))
        assert score(gold, f"${answer}$") == float(direct), (gold, answer)


def test_no_text_reaches_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a text was evaluated")

    monkeypatch.setattr(sympy_parser, "eval_expr", never)
    for answer in [*ATTACKS, *(answer for _, answer in EQUAL)]:
        if isinstance(answer, str):
            score("7", answer)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_a_tolerance_that_is_none_is_an_error(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        score("5", "5", tolerance=tolerance)


def test_ground_truth_that_is_missing_or_broken() -> None:
    assert math(RewardInput((), (), "5")) is None
    with pytest.raises(ValueError, match="ground_truth"):
        score("", "5")
