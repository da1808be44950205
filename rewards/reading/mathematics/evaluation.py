r"""The value of a formula at a point, in arithmetic of bounded size.

Real numbers are those of school: $\sqrt[3]{-8}$ is −2, and $\sqrt{-2}\sqrt{-3}$ has no value, although the
principal roots have the real product −√6. Rational numbers are exact, all others have a fixed number of
digits, and what would grow beyond all measure (towers of powers) has no value either.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeAlias

import mpmath
from sympy import Derivative, Mul, Pow, Symbol
from sympy.core.function import AppliedUndef

#: A formula of sympy, whose attributes depend on what it is and are not declared.
Tree: TypeAlias = Any
#: A fraction, or a real or complex number of mpmath.
Value: TypeAlias = Any
#: A value for each variable, by its name.
Point: TypeAlias = Mapping[str, Fraction]

DIGITS, MORE_DIGITS = 50, 200
#: Relative difference of numbers that are equal up to the noise of the last digits.
EXACT = 1e-12
#: Fractions that grow beyond this many bits go on as numbers of `DIGITS` digits; constants later.
_MAX_BITS, _MAX_CONSTANT_BITS = 4096, 200_000
#: No number is larger than 2 to this power, and no angle than 2^64.
_MAX_MAGNITUDE, _MAX_ANGLE = 100_000, 64
_MAX_FACTORIAL = 10_000


class NoValueError(ArithmeticError):
    """Says that a formula has no value at a point, or none that may be computed."""


def value(tree: Tree, point: Point, *, real: bool, digits: int = DIGITS) -> Value | None:
    """Return the value of a formula at a point; None where it has none.

    Args:
        tree: The formula. A function without a definition, f(x), is a variable of that name.
        point: What each variable stands for.
        real: Whether every part must be real; else roots and logarithms are principal ones.
        digits: Precision of numbers that are not rational.
    """
    context = _context(digits)
    try:
        found = _Evaluation(point, context, real).value(tree)
    except (ArithmeticError, ValueError, TypeError, NotImplementedError, RecursionError):
        return None
    if isinstance(found, Fraction):
        return found
    return found if context.isfinite(found) else None


def variables(tree: Tree) -> set[str]:
    """Return the names of what has to stand for numbers in a formula."""
    opaque = {str(node) for node in tree.atoms(AppliedUndef, Derivative)}
    return {symbol.name for symbol in tree.free_symbols} | opaque


def near(a: Value, b: Value, tolerance: float) -> bool:
    """Check whether two numbers differ by no more than the tolerance, relative to the larger.

    Fractions must be equal where no more than noise is allowed.
    """
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b or (tolerance > EXACT and abs(a - b) <= Fraction(tolerance) * max(abs(a), abs(b)))
    a, b = alike(a, b)
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))


def alike(*numbers: Value) -> list[Value]:
    """Return numbers that can be computed with one another: all fractions, or all of mpmath."""
    contexts = [number.context for number in numbers if not isinstance(number, Fraction)]
    if not contexts:
        return list(numbers)
    return [_rounded(number, contexts[0]) for number in numbers]


def _rounded(number: Value, context: Any) -> Value:
    """Return a fraction as a number of mpmath, anything else as it is."""
    return context.mpf(number.numerator) / number.denominator if isinstance(number, Fraction) else number


@lru_cache(maxsize=4)
def _context(digits: int) -> Any:
    context = mpmath.MPContext()
    context.dps = digits
    return context


class _Evaluation:
    """The arithmetic of one point."""

    def __init__(self, point: Point, context: Any, real: bool) -> None:
        self.point, self.context, self.real = point, context, real
        self.most_bits = _MAX_BITS if point else _MAX_CONSTANT_BITS

    def value(self, node: Tree) -> Value:
        """Return the value of a node of the tree.

        Raises:
            NoValueError: Or another `ArithmeticError`, `TypeError` or `ValueError`, where it has none.
        """
        if node.is_Rational:
            return Fraction(int(node.p), int(node.q))
        if node.is_Float:
            return self.context.mpf(str(node))
        name = type(node).__name__
        if isinstance(node, Symbol | AppliedUndef | Derivative):
            return self.point[node.name if isinstance(node, Symbol) else str(node)]
        if isinstance(node, Pow):
            base, exponent = node.args
            return self._checked(self._power(self.value(base), exponent))
        if name in _CONSTANTS:
            return self._checked(_CONSTANTS[name](self.context))
        parts = [self.value(part) for part in node.args]
        if node.is_Add or isinstance(node, Mul):
            found = parts[0]
            for part in parts[1:]:
                found = self._joined(found, part, times=not node.is_Add)
            return found
        if name in _EXACT:
            return self._checked(_EXACT[name](*alike(*parts)))
        if name not in _FUNCTIONS:
            raise NoValueError(name)
        most, function = _FUNCTIONS[name]
        parts = [_rounded(part, self.context) for part in parts]
        if any(abs(part) > most for part in parts):
            raise NoValueError("too large")
        return self._checked(function(self.context, *parts))

    def _joined(self, a: Value, b: Value, *, times: bool) -> Value:
        """Return a sum or product, exact where both are rational."""
        a, b = alike(a, b)
        return self._checked(a * b if times else a + b)

    def _power(self, base: Value, tree: Tree) -> Value:
        exponent = self.value(tree)
        if base == 0:
            if exponent == 0:
                return Fraction(1)
            if isinstance(exponent, self.context.mpc) or exponent < 0:
                raise NoValueError("a power of zero")
            return Fraction(0)
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            if isinstance(base, Fraction) and _bits(base) * abs(exponent) <= self.most_bits:
                return base ** int(exponent)
            return self._bounded(base, exponent) ** int(exponent)
        if self.real and base < 0:
            # Only a constant exponent says which root is meant.
            if not isinstance(exponent, Fraction) or exponent.denominator % 2 == 0 or tree.free_symbols:
                raise NoValueError("an even root of a negative number")
            root = self._bounded(-base, exponent) ** _rounded(exponent, self.context)
            return -root if exponent.numerator % 2 else root
        return self._bounded(base, exponent) ** _rounded(exponent, self.context)

    def _bounded(self, base: Value, exponent: Value) -> Value:
        """Return the base as a number of mpmath, if its power is no giant."""
        base = _rounded(base, self.context)
        if abs(exponent) * (abs(self.context.mag(base)) + 1) > _MAX_MAGNITUDE:
            raise NoValueError("a giant")
        return base

    def _checked(self, number: Value) -> Value:
        """Return the number, if it is one of those wanted, and a long fraction as a rounded number."""
        if isinstance(number, Fraction):
            return number if _bits(number) <= self.most_bits else _rounded(number, self.context)
        if isinstance(number, self.context.mpc):
            if self.real:
                raise NoValueError("not real")
        elif number != 0 and abs(self.context.mag(number)) > _MAX_MAGNITUDE:
            raise NoValueError("a giant")
        return number


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _floor(a: Value) -> Value:
    whole = int(a)  # towards zero
    return Fraction(whole - (a < whole))


def _remainder(a: Value, b: Value) -> Value:
    return a - b * _floor(a / b)


def _sign(a: Value) -> Value:
    return Fraction((a > 0) - (a < 0))


_CONSTANTS: dict[str, Callable[[Any], Value]] = {
    "Pi": lambda context: +context.pi,
    "Exp1": lambda context: +context.e,
    "EulerGamma": lambda context: +context.euler,
    "GoldenRatio": lambda context: +context.phi,
    "ImaginaryUnit": lambda context: context.mpc(0, 1),
}
#: What is exact for fractions; complex numbers have no order, which is a TypeError.
_EXACT: dict[str, Callable[..., Value]] = {
    "floor": _floor,
    "ceiling": lambda x: -_floor(-x),
    "Abs": abs,
    "Mod": _remainder,
    "Max": max,
    "Min": min,
    "sign": _sign,
    "UnevaluatedExpr": lambda x: x,
}
_ANGLES = ("sin", "cos", "tan", "cot", "sec", "csc")
_BY_NAME = (
    "asin",
    "acos",
    "atan",
    "acot",
    "asec",
    "acsc",
    "asinh",
    "acosh",
    "atanh",
    "acoth",
    "asech",
    "acsch",
)
_GROWING = ("exp", "sinh", "cosh", "tanh", "coth", "sech", "csch")
_DISCRETE = ("factorial", "gamma", "binomial", "zeta")
#: The largest argument, and the function of context and arguments.
_FUNCTIONS: dict[str, tuple[float, Callable[..., Value]]] = {
    **{name: (2.0**_MAX_ANGLE, lambda c, x, name=name: getattr(c, name)(x)) for name in _ANGLES},
    **{name: (math.inf, lambda c, x, name=name: getattr(c, name)(x)) for name in _BY_NAME},
    **{name: (_MAX_MAGNITUDE / 2, lambda c, x, name=name: getattr(c, name)(x)) for name in _GROWING},
    **{name: (_MAX_FACTORIAL, lambda c, *x, name=name: getattr(c, name)(*x)) for name in _DISCRETE},
    "log": (math.inf, lambda c, x, *base: c.log(x) / c.log(base[0]) if base else c.log(x)),
    "re": (math.inf, lambda c, x: c.re(x)),
    "im": (math.inf, lambda c, x: c.im(x)),
    "conjugate": (math.inf, lambda c, x: c.conj(x)),
    "arg": (math.inf, lambda c, x: c.arg(x)),
}
