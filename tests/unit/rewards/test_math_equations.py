"""Equations against values, and the spellings of numbers and formulas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.math import math


def score(gold: str, answer: str) -> float:
    result = math(RewardInput((), (), answer, ground_truth=gold))
    assert result is not None
    return result.value


MORE_THAN_A_VALUE = [
    ("x^2+y^2=4", "4"),
    ("x^2+y^2=4", "\\{4\\}"),
    ("x^2+y^2=r^2", "r^2"),
    ("x+y=0", "0"),
    ("3x-y=0", "0"),
    ("xy=4", "4"),
    ("ax+by=c", "c"),
    ("7=11a+c", "11a+c"),
    ("11a+c", "7=11a+c"),
    ("|x|=5", "5"),
    ("x^2=4", "4"),
    ("\\sqrt{x}=3", "3"),
    ("\\ln x=2", "2"),
    ("\\frac{x^2}{4}+\\frac{y^2}{9}=1", "1"),
    ("0=x^2-4", "x^2-4"),
    ("y+5=2(x-1)", "2(x-1)"),
    ("x=x^2-2", "x^2-2"),
    ("x^2-2", "x=x^2-2"),
    ("2x=10", "10"),
    ("11", "x=7=11"),
    ("2x", "y=3x=2x"),
    ("y'=2x", "y=2x"),
    ("x=\\pm 3", "3"),
    ("y=2x+1", "z=2x+1"),
]
A_NAMED_VALUE = [
    ("x=5", "5"),
    ("5", "x=5"),
    ("5=x", "5"),
    ("y=2x+1", "2x+1"),
    ("2x+1", "y=2x+1"),
    ("f(x)=2x+1", "2x+1"),
    ("f'(x)=2x", "2x"),
    ("2x", "f'(x)=2x"),
    ("f^{-1}(x)=x-1", "x-1"),
    ("\\frac{dy}{dx}=2x", "2x"),
    ("a_n=2n-1", "2n-1"),
    ("r=2\\cos\\theta", "2\\cos\\theta"),
    ("A=\\{1,2\\}", "\\{1,2\\}"),
    ("(x,y)=(1,2)", "(1,2)"),
    ("\\angle ABC=60°", "60°"),
    ("S_{\\triangle ABC}=6", "6"),
    ("|\\vec{a}|=5", "5"),
    ("\\sin A=\\frac35", "\\frac35"),
    ("P(A)=\\frac12", "0.5"),
    ("\\text{Area}=12", "12"),
    ("AB=5", "5"),
    ("4", "x^2+y^2=4"),
    ("5", "2+3=5"),
    ("2+3=5", "5"),
    ("25\\pi", "A=\\pi r^2=25\\pi"),
    ("\\sqrt{13}", "c=\\sqrt{13}\\approx3.606"),
    ("\\sqrt{2}", "\\sqrt{2}\\approx1.414"),
    ("x^2+y^2=4", "4=x^2+y^2"),
    ("y=2x+1", "y-2x-1=0"),
]
SPELLINGS = [
    ("32349", "32,\\! 349"),
    ("32349", "32,\\!349"),
    ("32349", "32{,}349"),
    ("32349", "32\\;349"),
    ("1234567", "1,\\!234,\\!567"),
    ("6", "\\textnormal{6}"),
    ("6", "\\textsf{6}"),
    ("6", "\\mathnormal{6}"),
    ("\\sqrt{2}", "\\Bigl(\\sqrt{2}\\Bigr)"),
    ("6, 8", "6 \\quad\\text{and}\\quad 8"),
    ("1, 2, 3", "1 \\quad 2 \\quad 3"),
    ("(2,2),(6,2)", "(2, 2) \\quad \\text{and} \\quad (6, 2)"),
    ("12", "twelve"),
    ("twelve", "12"),
    ("12", "a dozen"),
    ("21", "twenty-one apples"),
    ("105", "一百零五"),
    ("-1", "negative one"),
    ("\\frac34", "three quarters"),
    ("\\frac12", "one half"),
    ("2.5", "two and a half"),
    ("1000000", "one million"),
]
OTHER_NUMBERS = [
    ("32349", "32,\\! 348"),
    ("6", "\\textnormal{7}"),
    ("68", "6 \\quad 8"),
    ("6", "6 \\quad 8"),
    ("12", "dozens"),
    ("5", "five or six"),
    ("1", "no one"),
    ("2", "two thirds"),
    ("5", "minus five"),
    ("100", "one hundred and one"),
]


@pytest.mark.parametrize(("gold", "answer"), MORE_THAN_A_VALUE)
def test_an_equation_is_more_than_its_right_side(gold: str, answer: str) -> None:
    assert score(gold, answer) == 0


@pytest.mark.parametrize(("gold", "answer"), A_NAMED_VALUE)
def test_a_value_may_have_a_name(gold: str, answer: str) -> None:
    assert score(gold, answer) == 1


@pytest.mark.parametrize(("gold", "answer"), SPELLINGS)
def test_spellings_of_one_number(gold: str, answer: str) -> None:
    assert score(gold, answer) == 1


@pytest.mark.parametrize(("gold", "answer"), OTHER_NUMBERS)
def test_another_number_in_such_spelling(gold: str, answer: str) -> None:
    assert score(gold, answer) == 0


@given(st.integers(2, 9), st.integers(1, 9), st.integers(1, 99), st.sampled_from(["+", "-"]))
def test_a_curve_is_never_answered_by_its_constant(a: int, b: int, c: int, sign: str) -> None:
    for left in (f"{a}x {sign} {b}y", f"\\frac{{x^2}}{{{a}}} {sign} y^2", f"x {sign} y", f"x^{a} y"):
        assert score(f"{left} = {c}", str(c)) == 0
        assert score(f"{c} = {left}", str(c)) == 0
        assert score(f"{left} = {c}", f"{left} = {c}") == 1


@given(st.integers(-999, 999), st.sampled_from(["x", "y_1", "\\theta", "S", "f(2)", "AB", "\\angle A"]))
def test_a_number_may_always_have_a_name(number: int, name: str) -> None:
    assert score(f"{name} = {number}", str(number)) == score(str(number), f"{name} = {number}") == 1
    assert score(f"{name} = {number}", str(number + 1)) == score(str(number + 1), f"{name} = {number}") == 0
