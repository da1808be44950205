"""Sets of real numbers and matrices: what has parts that are compared as numbers."""

import itertools
import operator
import random
from collections.abc import Iterator
from fractions import Fraction
from functools import reduce

from sympy import And, Expr, ImmutableDenseMatrix, MatrixBase, Not, Or, Set
from sympy.core.relational import Equality, Relational, StrictGreaterThan, StrictLessThan, Unequality

from rewards.reading.mathematics.evaluation import DIGITS, Tree, Value, alike, value, variables

_RANDOM = random.SystemRandom()
#: Members are asked for at the ends of both sets, one part in so many beside them, between and at random.
_BESIDE = 10**6
_RANDOM_MEMBERS = 40
_MAX_ENDS = 40
_MAX_POWER = 10
#: Numbers with `DIGITS` digits that differ by one part in so many are one.
_SAME = 10 ** (DIGITS // 2)
_WHOLE_SETS = {"Integers": None, "Naturals": 1, "Naturals0": 0}


class _UnknownError(ValueError):
    """Says that nothing can be said of such a set."""


def explicit(tree: Tree) -> Tree:
    """Return the matrix that sums, products, powers and transposes of matrices are.

    Raises:
        ValueError: If one is not given by its entries, or is left to be inverted or raised to a high power.
    """
    kind = type(tree).__name__
    if isinstance(tree, MatrixBase):
        return ImmutableDenseMatrix(tree)
    if kind == "MatAdd":
        return reduce(operator.add, map(explicit, tree.args))
    if kind == "MatMul":
        return reduce(operator.mul, (explicit(part) if part.is_Matrix else part for part in tree.args))
    if kind == "MatPow" and tree.exp.is_Integer and 0 < int(tree.exp) <= _MAX_POWER:
        return explicit(tree.base) ** int(tree.exp)
    if kind == "Transpose":
        return explicit(tree.arg).T
    raise _UnknownError("a matrix without entries")


def same_members(gold: Tree, answer: Tree) -> bool:
    """Check whether two sets have the same members wherever asked; a condition on x is the set of those x.

    Raises:
        ValueError: If one is no set of real numbers.
    """
    names = variables(gold) | variables(answer)
    if len(names) > 1:
        raise _UnknownError("two variables")
    name = next(iter(names), "x")
    return all(
        _holds(gold, name, number) == _holds(answer, name, number) for number in _members(gold, answer)
    )


def _members(*trees: Tree) -> Iterator[Value]:
    """Yield the numbers to ask for."""
    nodes = [node for tree in trees for node in (tree, *tree.atoms(Expr, Set, Relational))]
    constants = {
        part for node in nodes for part in node.args if isinstance(part, Expr) and not part.free_symbols
    }
    found = [value(constant, {}, real=True) for constant in constants]
    ends = sorted(number for number in found if number is not None)
    if len(ends) > _MAX_ENDS:
        raise _UnknownError("too many ends")
    yield from ends
    yield from (sign * (abs(end) + 1) / _BESIDE + end for end in ends for sign in (1, -1))
    yield from ((a + b) / 2 for a, b in itertools.pairwise(ends))
    reach = 2 * max(1, *(abs(int(end)) for end in ends)) if ends else 10
    yield from (Fraction(_RANDOM.randrange(-reach * 1000, reach * 1000), 997) for _ in range(_RANDOM_MEMBERS))
    yield from map(Fraction, range(-3, 4))


def _holds(tree: Tree, name: str, number: Value) -> bool:
    """Check whether a number is in a set, or makes a condition true."""
    kind = type(tree).__name__
    if isinstance(tree, Relational):
        left, right = map(_expression, (tree.lhs, tree.rhs))
        return _relation(tree, value(left - right, {name: number}, real=True))
    if isinstance(tree, And) or kind == "Intersection":
        return all(_holds(part, name, number) for part in tree.args)
    if isinstance(tree, Or) or kind == "Union":
        return any(_holds(part, name, number) for part in tree.args)
    if isinstance(tree, Not):
        return not _holds(tree.args[0], name, number)
    if kind == "Complement":
        whole, without = tree.args
        return _holds(whole, name, number) and not _holds(without, name, number)
    if kind == "Interval":
        low, high = (_end(end) for end in tree.args[:2])
        return (low is None or _after(number, low, tree.left_open)) and (
            high is None or _after(high, number, tree.right_open)
        )
    if kind == "FiniteSet":
        return any(_one(number, _constant(part)) for part in tree.args)
    if kind in ("EmptySet", "Reals"):
        return kind == "Reals"
    if kind in _WHOLE_SETS:
        least = _WHOLE_SETS[kind]
        return _one(number, Fraction(_whole(number))) and (least is None or _whole(number) >= least)
    raise _UnknownError(kind)


def _expression(tree: Tree) -> Tree:
    """Return a side of a condition, which is a formula.

    Raises:
        ValueError: If it is a set or another condition.
    """
    if not isinstance(tree, Expr):
        raise _UnknownError("no formula")
    return tree


def _relation(tree: Tree, difference: Value | None) -> bool:
    """Check whether left minus right, if it has a value, is as the sign between them says."""
    if difference is None:
        return False
    zero = abs(difference) * _SAME < 1
    if isinstance(tree, Equality | Unequality):
        return zero == isinstance(tree, Equality)
    if isinstance(tree, StrictLessThan | StrictGreaterThan) or not zero:
        upward = tree.gts == tree.lhs
        return not zero and (difference > 0) == upward
    return True


def _whole(number: Value) -> int:
    return int(number + (0.5 if number > 0 else -0.5)) if not isinstance(number, Fraction) else round(number)


def _end(tree: Tree) -> Value | None:
    """Return an end of an interval, None for infinity."""
    return None if tree.is_infinite else _constant(tree)


def _constant(tree: Tree) -> Value:
    found = value(tree, {}, real=True) if isinstance(tree, Expr) else None
    if found is None:
        raise _UnknownError("no real number")
    return found


def _one(a: Value, b: Value) -> bool:
    a, b = alike(a, b)
    return abs(a - b) * _SAME <= 1 + abs(b)


def _after(a: Value, b: Value, strict: bool) -> bool:
    """Check whether a > b, or a ≥ b if that is not strict."""
    if _one(a, b):
        return not strict
    a, b = alike(a, b)
    return a > b
