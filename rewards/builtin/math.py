"""Is the final answer mathematically equal to the reference? math-verify, behind guards.

math-verify parses LaTeX by a grammar, so no text of a model is ever evaluated as Python. Its own time limit
is off: it works by SIGALRM and would turn a time-out into «wrong». Here the deadline of the worker pool
holds, and a time-out is an error.
"""

import itertools
import logging
import re
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import (
    Equality,
    Expr,
    FiniteSet,
    Float,
    Interval,
    MatrixBase,
    Rational,
    Tuple,
    UnevaluatedExpr,
)
from sympy.core.relational import Relational

from posttrain.types import RewardInput, Score
from rewards.answers import final_answer
from rewards.builtin.answer_accuracy import references
from rewards.sdk import reward

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off

MAX_LENGTH = 1000
MAX_DEPTH = 20
_LATEX = (LatexExtractionConfig(boxed_match_priority=0),)
_TOO_COSTLY = re.compile(
    r"\d{300}"  # a number of hundreds of digits
    r"|\d\s*\}?\s*\^\s*\{?\s*\d[\d\s{}]*\^"  # a tower of powers
    r"|(\d{4}|\^[^!=,]{1,9})[\s)}]*!"  # the factorial of a large number
    r"|\^\s*\{?\s*\d{5}"  # a power with a large exponent
)
_CLOCK = re.compile(r"\d\s*:\s*\d")
_WORDS = re.compile(r"[A-Za-z]{3,}(?:\s+[A-Za-z]+)*")
#: Two points (values of up to eight variables) where formulas are compared in numbers.
_POINTS = tuple([Rational(p + 31 * k, q + 7 * k) for k in range(8)] for p, q in ((137, 101), (271, 89)))
#: Relative difference allowed where one side is a decimal fraction, as in 0.333333 for 1/3.
_DECIMAL_TOLERANCE = 1.1e-6
_EXACT_TOLERANCE = 1e-12
#: What is left of a sum that is zero.
_NOISE = 1e-60


@reward("math")
def math(x: RewardInput) -> Score | None:
    r"""1 if the final answer equals a reference answer in mathematics, else 0.

    Formula: max over references g of [a ≡ g], with a the final answer (after the thinking; the last
    `<answer>`, boxed, `Answer:` or last line). a ≡ g if both are the same text, or if math-verify calls them
    equal and this holds at several points too: values within a relative 1e-12 (1.1e-6 where a decimal
    fraction takes part), equations proportional to each other, clocks and ratios digit by digit. The
    second check is there because math-verify also accepts 1/2^{99} for 1/2^{98}, 12:00 for 1:00 and any
    two equations without a real solution. Answers too costly to compare (towers of powers, thousands of
    digits) are wrong.

    Range: {0, 1}. Source: Qwen3-VL report, reasoning RL; math-verify 0.9.

    Args:
        x: `ground_truth` is LaTeX or a number, or a list of them; None means that this does not apply.

    Raises:
        ValueError: If the ground truth is empty or of another type, which is a fault of the dataset.
    """
    if x.ground_truth is None:
        return None
    answer = _clean(final_answer(x.answer))
    if not answer:
        return Score(0.0, note="no answer")
    golds = [_clean(gold) for gold in references(x.ground_truth)]
    if any(_same_text(gold, answer) or _same_text(gold, _clean(x.answer)) for gold in golds):
        return Score(1.0)
    if len(answer) > MAX_LENGTH or _depth(answer) > MAX_DEPTH or _TOO_COSTLY.search(answer):
        return Score(0.0, note="the answer is too long or too costly to compare")
    return Score(float(any(_equal(gold, answer) for gold in golds)), note=f"answered {answer[:80]!r}")


def _clean(text: str) -> str:
    """Bare LaTeX: no dollar signs or brackets around it, powers and products as LaTeX writes them."""
    text = text.strip().rstrip("。.").strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**")):
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)].strip()
    text = text.replace("**", "^").replace("−", "-")
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)
    return re.sub(r"\^\s*(-\d+|\d{2,})", r"^{\1}", text)


def _same_text(gold: str, answer: str) -> bool:
    return gold.split() == answer.split()


def _depth(text: str) -> int:
    """The deepest nesting of braces and parentheses."""
    return max(itertools.accumulate((c in "{(") - (c in "})") for c in text))


def _equal(gold: str, answer: str) -> bool:
    """Whether two different texts are the same mathematics."""
    if _CLOCK.search(gold) or _CLOCK.search(answer):
        return re.findall(r"\d+|[^\s\d]", gold) == re.findall(r"\d+|[^\s\d]", answer)
    if gold.count("'") != answer.count("'"):  # a derivative is not its function
        return False
    if _WORDS.fullmatch(gold):  # math-verify would read a product of letters, in any order
        return gold.casefold().split() == answer.casefold().split()
    parsed, other = _parse(gold), _parse(answer)
    if not parsed or not other or not verify(parsed, other, timeout_seconds=None):
        return False
    return _confirmed(parsed[0], other[0])


def _parse(latex: str) -> list[Any]:
    return parse(f"\\boxed{{{latex}}}", _LATEX, fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]


def _confirmed(gold: Any, answer: Any) -> bool:
    """Whether numbers agree with math-verify's yes on two sympy objects; undecided, it stands."""
    gold, answer = _value(gold, answer), _value(answer, gold)
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        return _proportional(gold, answer)
    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        return all(_confirmed(a, b) for a, b in zip(gold.flat(), answer.flat(), strict=True))
    if isinstance(gold, Interval) and isinstance(answer, Interval):
        return _confirmed(gold.start, answer.start) and _confirmed(gold.end, answer.end)
    if isinstance(gold, Tuple) and isinstance(answer, Tuple):
        return all(_confirmed(a, b) for a, b in zip(gold, answer, strict=True))
    if isinstance(gold, FiniteSet) and isinstance(answer, FiniteSet):
        return all(any(_confirmed(a, b) for b in answer.args) for a in gold.args)
    if isinstance(gold, Expr) and isinstance(answer, Expr):
        return _close(gold, answer)
    return True


def _value(side: Any, other: Any) -> Any:
    """`5` of `x = 5`, where the other side is no equation."""
    return side.args[-1] if isinstance(side, Relational) and not isinstance(other, Relational) else side


def _close(gold: Any, answer: Any) -> bool:
    """Equal values at every point; a percentage may be written with or without its sign."""
    decimal = gold.has(Float) or answer.has(Float)
    tolerance = _DECIMAL_TOLERANCE if decimal else _EXACT_TOLERANCE
    factors = [1] + [100] * gold.has(UnevaluatedExpr) + [Rational(1, 100)] * answer.has(UnevaluatedExpr)
    ours, theirs = _values(gold), _values(answer)
    if None in ours or None in theirs:
        return True
    return any(all(_near(a * k, b, tolerance) for a, b in zip(ours, theirs, strict=True)) for k in factors)


def _proportional(gold: Any, answer: Any) -> bool:
    """Whether one relation is the other times a constant, which is negative where the sign is turned round.

    Relations that always or never hold say nothing and equal only themselves.
    """
    try:
        ours, theirs = _values(gold.lhs - gold.rhs), _values(answer.lhs - answer.rhs)
    except TypeError:  # a side is a set
        return True
    if None in ours or None in theirs:
        return True
    if not all(ours) or not all(theirs):
        return False
    ratio = ours[0] / theirs[0]
    if not isinstance(gold, Equality) and bool(ratio > 0) != isinstance(answer, type(gold)):
        return False
    return all(_near(a, ratio * b, _EXACT_TOLERANCE) for a, b in zip(ours, theirs, strict=True))


def _values(expression: Any) -> list[Any]:
    """The expression at each point: a rational exactly, else to 30 digits, or None where it has no value."""
    symbols = sorted(expression.free_symbols, key=str)
    values = [expression.subs(list(zip(symbols, point, strict=False))).doit() for point in _POINTS]
    exact_or_not = [value if value.is_Rational else value.evalf(30) for value in values]
    return [value if value.is_number and value.is_finite else None for value in exact_or_not]


def _near(a: Any, b: Any, tolerance: float) -> bool:
    if a.is_Rational and b.is_Rational:
        return a == b
    return bool(abs(a - b) <= max(tolerance * max(abs(a), abs(b)), _NOISE))
