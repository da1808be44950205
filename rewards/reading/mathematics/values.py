r"""Whether two LaTeX formulas have the same value: math-verify's parser, then numbers.

The parser is a grammar (ANTLR), so no text is evaluated as Python. What it gives is not evaluated either
until its cost is known: `9^{9^9}` is a tree of three numbers, and a gigabyte once computed. Nothing is
solved or simplified, so the time that an answer takes is bounded by its length.
"""

import itertools
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import mpmath
from math_verify import LatexExtractionConfig, parse
from sympy import (
    Basic,
    Equality,
    Expr,
    I,
    ImmutableDenseMatrix,
    MatrixBase,
    Number,
    Pow,
    Symbol,
    exp,
    factorial,
    false,
    true,
)
from sympy.core.relational import Relational

from rewards.reading.mathematics.evaluation import (
    EXACT,
    MORE_DIGITS,
    Point,
    Tree,
    Value,
    alike,
    near,
    value,
    variables,
)
from rewards.reading.mathematics.points import far_points, real_points, whole_points
from rewards.reading.mathematics.sets import explicit, same_members

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off

_NORMAL = LatexExtractionConfig().normalization_config
#: Units are read by `quantities`; the parser's rule would take the m of c^2 m for metres.
_LATEX = (LatexExtractionConfig(boxed_match_priority=0, normalization_config=replace(_NORMAL, units=False)),)
#: What the parser itself would compute.
_COSTLY_TEXT = re.compile(r"\d{300}|binom[^=]{0,60}?(?:\d{4}|[\^!])|\\choose|(?:[-+]\s*){20}|(?:!\s*){3}")
#: An answer that leaves these to the grader has not answered (and they may take for ever).
_UNDONE = re.compile(r"\\(?:det|gcd|lcm|lim|i*int|oint|sum|prod)(?![A-Za-z])|\\begin\{[vV]matrix")
_MAX_NODES = 300
_PIECED = ("Abs", "Max", "Min", "floor", "ceiling", "sign", "Mod")
#: After these a value begins, so that a bar opens.
_WANTS_MORE = tuple("+-*/^=<>([{,")
_MAX_BITS = 200_000.0
#: How many points with values on both sides a verdict needs.
_LEAST_POINTS = 3
_MAX_VARIABLES = 30
#: What is left of a sum that is zero, in the share that more digits leave of it.
_VANISHED = mpmath.mpf(10) ** -100


def same_value(gold: str, answer: str, tolerance: float) -> bool:
    """Check whether two formulas are equal wherever both have a value.

    Formula: |g(p) − a(p)| ≤ tolerance · max(|g(p)|, |a(p)|) at points p drawn anew each time, of all signs;
    exactly equal where both are rational and nothing was rounded. Both must have a value at three points or
    more, which are tried in this order: real variables and real values of every part (so √(x²) is |x|, and
    ln x + ln y is ln xy); whole numbers for variables named like some, as in (−1)^n = cos nπ; and complex
    values, at once where i occurs. Relations are equal if one is a multiple of the other, negative where
    the sign is turned round; sets of real numbers if they have the same members around all their ends.

    Args:
        gold: LaTeX of the reference.
        answer: LaTeX of the answer.
        tolerance: Relative difference allowed; `EXACT` where neither side is a decimal fraction.
    """
    ours, theirs = parsed(gold), parsed(answer)
    if ours is None or theirs is None:
        return False
    if ours == theirs:
        return True
    try:
        return _decide(ours, theirs, tolerance)
    except Exception:  # sympy raises all kinds on nonsense such as f < i; nonsense equals nothing
        return False


def _decide(gold: Tree, answer: Tree, tolerance: float) -> bool:
    """Compare two relations, formulas, matrices or sets."""
    kinds = {_kind(gold), _kind(answer)}
    if kinds == {"relation"}:
        return _proportional(gold, answer)
    if kinds == {"formula"}:
        return _agree(gold, answer, lambda a, b: near(a, b, tolerance))
    if kinds == {"matrix"}:
        ours, theirs = explicit(gold), explicit(answer)
        return ours.shape == theirs.shape and all(
            a == b or _agree(a, b, lambda a, b: near(a, b, tolerance))
            for a, b in zip(ours, theirs, strict=True)
        )
    return kinds <= {"relation", "set"} and same_members(gold, answer)


def _kind(tree: Tree) -> str:
    if isinstance(tree, Relational):
        return "relation"
    if isinstance(tree, MatrixBase) or getattr(tree, "is_Matrix", False):
        return "matrix"
    return "formula" if isinstance(tree, Expr) else "set"


def is_number(latex: str) -> bool:
    """Check whether the formula is a number: it has a value and no variables."""
    found = parsed(latex)
    return isinstance(found, Expr) and not isinstance(found, MatrixBase) and not variables(found)


@lru_cache(maxsize=2048)
def parsed(latex: str) -> Tree:
    """Parse a formula to a sympy object; None where it is none, is left undone, or would be too costly.

    A text has one reading, so the cache carries nothing from one sample to another but time.
    """
    if latex.count("{") != latex.count("}") or _COSTLY_TEXT.search(latex) or _UNDONE.search(latex):
        return None
    text = f"\\boxed{{{_with_sided_bars(latex)}}}"
    found = parse(text, _LATEX, fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]
    if not found or not isinstance(found[0], Basic | MatrixBase):
        return None
    tree: Tree = ImmutableDenseMatrix(found[0]) if isinstance(found[0], MatrixBase) else found[0]
    try:
        if not _affordable(tree):
            return None
        tree = tree.xreplace({s: I if s.name == "i" else Symbol(s.name) for s in tree.atoms(Symbol)})
    except Exception:  # an interval from i to 2, and the like
        return None
    return None if tree in (true, false) else tree  # 0 = 1 says nothing


def _with_sided_bars(latex: str) -> str:
    r"""Write |x| as \lvert x \rvert: the parser takes the second half of x|x| + y|y| for a value within it.

    A bar closes where one is open at the same depth of brackets and something stands between; where bars
    do not come out even, as in {x | x > 0}, they stay.
    """
    if "|" not in latex:
        return latex
    open_at: list[int] = []
    pieces, depth, before = [], 0, ""
    for place, character in enumerate(latex):
        depth += (character in "([{") - (character in ")]}")
        if character == "|" and latex[place - 1 : place] != "\\":
            closes = bool(open_at) and open_at[-1] == depth and before not in _WANTS_MORE
            if closes:
                open_at.pop()
            else:
                open_at.append(depth)
            pieces.append("\\rvert " if closes else "\\lvert ")
            before = ")" if closes else "("
            continue
        pieces.append(character)
        before = character if not character.isspace() else before
    return latex if open_at else "".join(pieces)


def _affordable(tree: Tree) -> bool:
    """Check that the tree has no more nodes, and no part more bits, than is quickly computed."""
    nodes = 0
    for nodes, _ in enumerate(_walk(tree), 1):
        if nodes > _MAX_NODES:
            return False
    return nodes > 0 and _bits(tree) <= _MAX_BITS


def _walk(tree: Tree) -> Iterator[Tree]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(node.args)


def _bits(node: Tree) -> float:
    """Bound log2 of the node's size from above, variables up to 2^4; infinite where nothing bounds it."""
    if isinstance(node, Number):
        return _bits_of_number(node)
    if not node.args:
        return 4.0
    parts = [_bits(part) for part in node.args]
    worst = max(parts)
    if worst > _MAX_BITS:
        return math.inf
    if isinstance(node, Pow):
        exponent = node.exp
        known = exponent.is_Rational and parts[1] <= 64
        return parts[0] * (abs(float(exponent)) + 1 if known else 2.0 ** min(parts[1], 64))
    if isinstance(node, exp):
        return 1.5 * 2.0 ** min(parts[0], 64)
    if isinstance(node, factorial) or type(node).__name__ in ("gamma", "binomial", "sinh", "cosh"):
        return worst * 2.0 ** min(worst, 64)
    return sum(parts) + 1


def _bits_of_number(number: Tree) -> float:
    if number.is_Rational:
        return float(max(abs(number.p), number.q).bit_length())
    size = abs(float(number)) if number.is_finite else 0.0
    return abs(math.log2(size)) + 1 if size else 1.0


def _agree(gold: Tree, answer: Tree, equal: Callable[[Value, Value], bool]) -> bool:
    """Check whether the two values are equal at every point where both are there, and there are enough."""
    names = sorted(variables(gold) | variables(answer))
    if len(names) > _MAX_VARIABLES:
        return False
    pieced = any(_is_pieced(node) for tree in (gold, answer) for node in _walk(tree))
    for points, real in _ways(names, gold.has(I) or answer.has(I), pieced):
        found = 0
        for number, point in enumerate(itertools.chain(points, far_points(names))):
            if number >= len(points) and found >= _LEAST_POINTS:
                break
            ours = value(gold, point, real=real)
            theirs = None if ours is None else value(answer, point, real=real)
            if ours is None or theirs is None:
                continue
            if not equal(ours, theirs) and not equal(*_exacter(gold, answer, point, real, (ours, theirs))):
                return False
            found += 1
        if found >= (_LEAST_POINTS if names else 1):
            return True
    return False


def _is_pieced(node: Tree) -> bool:
    """Check for what is one formula here and another there: |x|, √(x²), max(x, y), the floor of x."""
    root = node.is_Pow and node.exp.is_Rational and node.exp.q > 1
    return (root or type(node).__name__ in _PIECED) and bool(node.free_symbols)


def _ways(names: list[str], imaginary: bool, pieced: bool) -> Iterator[tuple[list[Point], bool]]:
    """Yield the points to try, and whether all values must be real there, in this order."""
    if not imaginary:
        yield real_points(names, pieced=pieced), True
        if whole := whole_points(names):
            yield whole, True
    yield real_points(names, pieced=pieced), False


def _exacter(
    gold: Tree, answer: Tree, point: Point, real: bool, before: tuple[Value, Value]
) -> tuple[Value, Value]:
    """Return both values with more digits, as zero what these take away: sin² 1 + cos² 1 − 1."""
    after = (value(tree, point, real=real, digits=MORE_DIGITS) for tree in (gold, answer))
    ours, theirs = (
        Fraction(0) if more is None or abs(more) <= _VANISHED * abs(less) else more
        for more, less in zip(after, before, strict=True)
    )
    return ours, theirs


def _proportional(gold: Tree, answer: Tree) -> bool:
    """Check whether one relation is the other times a constant.

    Relations that always or never hold say nothing and equal only themselves.
    """
    ratios: list[Value] = []

    def equal(ours: Value, theirs: Value) -> bool:
        if ours == 0 or theirs == 0:
            return False
        ours, theirs = alike(ours, theirs)
        ratios.append(ours / theirs)
        return near(ratios[0], ratios[-1], EXACT)

    if not gold.free_symbols or not _agree(gold.lhs - gold.rhs, answer.lhs - answer.rhs, equal):
        return False
    if isinstance(gold, Equality) or isinstance(answer, Equality):
        return type(gold) is type(answer)
    return isinstance(answer, type(gold) if ratios[0] > 0 else gold.reversed.func)
