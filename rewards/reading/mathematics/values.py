r"""Whether two LaTeX formulas have the same value: math-verify's parser, then numbers, then math-verify.

The parser is a grammar (ANTLR), so no text is evaluated as Python. What it gives is not evaluated either
until its cost is known: `9^{9^9}` is a tree of three numbers, and a gigabyte once computed.
"""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

from math_verify import LatexExtractionConfig, parse, verify
from sympy import (
    Basic,
    Equality,
    Expr,
    I,
    ImmutableDenseMatrix,
    MatrixBase,
    Number,
    Pow,
    Rational,
    Symbol,
    exp,
    factorial,
    false,
    true,
)
from sympy.core.relational import Relational

#: A formula or number of sympy, whose attributes depend on what it is and are not declared.
Tree: TypeAlias = Any

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off

_NORMAL = LatexExtractionConfig().normalization_config
#: Units are read by `quantities`; the parser's rule would take the m of c^2 m for metres.
_LATEX = (LatexExtractionConfig(boxed_match_priority=0, normalization_config=replace(_NORMAL, units=False)),)
#: What the parser itself would compute.
_COSTLY_TEXT = re.compile(r"\d{300}|binom[^=]{0,60}?(?:\d{4}|[\^!])|\\choose|(?:[-+]\s*){20}|(?:!\s*){3}")
#: An answer that leaves these to the grader has not answered (and they may take for ever).
_UNDONE = re.compile(r"\\(?:det|gcd|lcm|lim|i*int|oint|sum|prod)(?![A-Za-z])|\\begin\{[vV]matrix")
_MAX_NODES = 300
_MAX_BITS = 200_000.0
#: What a variable stands for, by its place in the alphabet of the two formulas.
_POINTS = tuple(
    [Rational(p + 31 * k, q + 6 * k) * sign for k in range(8)]
    for p, q, sign in ((137, 101, 1), (1271, 89, 1), (211, 73, -1), (5, 97, -1))
)
EXACT = 1e-12
#: What is left of a sum that is zero.
_NOISE = 1e-60


def same_value(gold: str, answer: str, tolerance: float) -> bool:
    """Check whether two formulas are equal wherever tried; math-verify decides what has no values.

    Formula: |g(p) − a(p)| ≤ tolerance · max(|g(p)|, |a(p)|) at two positive points p and, where both are
    real there, two negative ones; exactly equal where both are rational and nothing was rounded. Relations
    are equal if one is a multiple of the other, negative where the sign is turned round.

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
        decided = _decide(ours, theirs, tolerance)
    except Exception:  # sympy raises all kinds on nonsense such as f < i; nonsense equals nothing
        return False
    if decided is None:
        return verify(ours, theirs, allow_set_relation_comp=True, timeout_seconds=None)
    return decided


def _decide(gold: Tree, answer: Tree, tolerance: float) -> bool | None:
    """Compare two relations or two formulas in numbers; None where there are none to compare."""
    kinds = {_kind(gold), _kind(answer)}
    if kinds == {"relation"}:
        return _proportional(gold, answer)
    if kinds == {"formula"}:
        return _close(gold, answer, tolerance)
    return False if "formula" in kinds else None


def _kind(tree: Tree) -> str:
    if isinstance(tree, Relational):
        return "relation"
    return "formula" if isinstance(tree, Expr) and not getattr(tree, "is_Matrix", False) else "other"


def is_number(latex: str) -> bool:
    """Check whether the formula is a number: it has a value and no variables."""
    found = parsed(latex)
    return isinstance(found, Expr) and not found.free_symbols and not isinstance(found, MatrixBase)


@lru_cache(maxsize=2048)
def parsed(latex: str) -> Tree:
    """Parse a formula to a sympy object; None where it is none, is left undone, or would be too costly.

    A text has one reading, so the cache carries nothing from one sample to another but time.
    """
    if latex.count("{") != latex.count("}") or _COSTLY_TEXT.search(latex) or _UNDONE.search(latex):
        return None
    found = parse(f"\\boxed{{{latex}}}", _LATEX, fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]
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


def _close(gold: Tree, answer: Tree, tolerance: float) -> bool | None:
    """Check whether values agree at every point; None where neither has a value at a positive one."""
    for point, ours, theirs in _pairs(gold, answer):
        if ours is None or theirs is None:
            if point < 2:
                return None if ours is theirs else False
            continue
        if point >= 2 and not (ours.is_real and theirs.is_real):
            continue
        if not near(ours, theirs, tolerance):
            return False
    return True


def _proportional(gold: Tree, answer: Tree) -> bool | None:
    """Check whether one relation is the other times a constant.

    Relations that always or never hold say nothing and equal only themselves.
    """
    ratio = None
    try:
        pairs = _pairs(gold.lhs - gold.rhs, answer.lhs - answer.rhs)
    except TypeError:  # a side is a set
        return None
    for point, ours, theirs in pairs:
        if ours is None or theirs is None:
            if point < 2:
                return None if ours is theirs else False
            continue
        if ours == 0 or theirs == 0:
            return False
        ratio = ours / theirs if ratio is None else ratio
        if not near(ours, ratio * theirs, EXACT):
            return False
    if ratio is None or not gold.free_symbols:
        return False
    if isinstance(gold, Equality) or isinstance(answer, Equality):
        return type(gold) is type(answer)
    return isinstance(answer, type(gold) if ratio.is_positive else gold.reversed.func)


def _pairs(gold: Tree, answer: Tree) -> Iterator[tuple[int, Tree, Tree]]:
    """Yield for each point its number and both values; variables of one name stand for the same number."""
    names = sorted(gold.free_symbols.union(answer.free_symbols), key=str)
    for number, point in enumerate(_POINTS if names else _POINTS[:1]):
        values = dict(zip(names, point, strict=False))
        yield number, _value(gold, values), _value(answer, values)


def _value(expression: Tree, values: Mapping[Symbol, Rational]) -> Tree:
    """Evaluate an expression: a rational exactly, else to 30 digits, or None where it has no value."""
    value = expression.xreplace(values).doit()
    if not value.is_Rational:
        value = value.evalf(30)
    return value if value.is_number and value.is_finite else None


def near(a: Tree, b: Tree, tolerance: float) -> bool:
    """Check whether two numbers differ by no more than the tolerance; rationals exactly by default."""
    if tolerance <= EXACT and a.is_Rational and b.is_Rational:
        return a == b
    return bool(abs(a - b) <= max(tolerance * max(abs(a), abs(b)), _NOISE))
