"""Points at which two formulas are compared, drawn anew for every comparison.

Fixed points would be known to whoever writes the answer, and some polynomial vanishes at all of them. Two
draws give the same verdict but for the chance that unlike formulas agree at every point of one of them: for
polynomials of degree d below (d / 1000)^k with k points (Schwartz and Zippel).
"""

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

from rewards.reading.mathematics.evaluation import Point

#: From the system, so that no seed set by a run or a library repeats it.
_RANDOM = random.SystemRandom()
#: How large variables are: below 1 for arcsin, above it for √(x − 1). Costs are bounded for up to 16.
_SIZES = ((1, 4), (0.05, 1), (4, 16))
#: Where too few of those are in the domain of both formulas, as of √(x − 20).
_FAR_SIZES = (*_SIZES, (16, 100), (100, 1000))
_FAR_POINTS = 40
_MANY_POINTS = 128
_LEAST_DENOMINATOR, _MOST_DENOMINATOR = 997, 4093
_LARGEST_WHOLE = 12
#: Names that stand for whole numbers by convention.
_WHOLE = re.compile(r"[nkmjlNKM](?:_\{?\w{1,5}\}?)?")


def real_points(names: Sequence[str], *, pieced: bool) -> list[Point]:
    """Draw points at which any two variables have all combinations of signs; the first point is positive.

    Args:
        names: The variables.
        pieced: Whether a formula is put together of pieces, as |x² − y| is, one of which may be small.
    """
    if not names:
        return [{}]
    patterns = _signs(len(names))
    rounds = _MANY_POINTS // len(patterns) if pieced else 4 if len(patterns) < 4 else 2
    return [
        {name: sign * _size(_RANDOM.choice(_SIZES)) for name, sign in zip(names, signs, strict=True)}
        for signs in patterns * max(2, rounds)
    ]


def far_points(names: Sequence[str]) -> Iterator[Point]:
    """Yield points for narrow domains, most of them positive and some of them far out."""
    for _ in range(_FAR_POINTS if names else 0):
        yield {name: _RANDOM.choice((1, 1, -1)) * _size(_RANDOM.choice(_FAR_SIZES)) for name in names}


def whole_points(names: Sequence[str]) -> list[Point]:
    """Draw points where variables that are whole numbers by convention are some, from 1 up; else none.

    Any two of them are even and odd in all combinations.
    """
    whole = [name for name in names if _WHOLE.fullmatch(name)]
    others = [name for name in names if name not in whole]
    patterns = _signs(len(names)) if whole else []
    points: list[Point] = []
    for parities in patterns * (6 if len(patterns) < 4 else 2):
        counts = {
            name: Fraction(2 * _RANDOM.randrange(_LARGEST_WHOLE // 2) + (1 if parity < 0 else 2))
            for name, parity in zip(whole, parities, strict=False)
        }
        signs = parities[len(whole) :]
        rest = {name: sign * _size(_RANDOM.choice(_SIZES)) for name, sign in zip(others, signs, strict=True)}
        points.append(counts | rest)
    return points


def _signs(count: int) -> list[tuple[int, ...]]:
    """Return rows of signs, the first all positive, in which any two columns have all four combinations.

    The columns are different sums (mod 2) of the bits of the row's number, an orthogonal array of strength
    2; up to three variables have all combinations.
    """
    bits = next(k for k in itertools.count(1) if count < 2**k)
    bits = count if count <= 3 else bits
    sums = [1 << k for k in range(bits)] + [s for s in range(1, 2**bits) if s & (s - 1)]
    columns = sums[:count]
    rows = [
        tuple(-1 if (row & column).bit_count() % 2 else 1 for column in columns) for row in range(2**bits)
    ]
    head, rest = rows[0], rows[1:]
    _RANDOM.shuffle(rest)
    return [head, *rest]


def _size(bounds: tuple[float, float]) -> Fraction:
    denominator = _RANDOM.randrange(_LEAST_DENOMINATOR, _MOST_DENOMINATOR)
    return Fraction(
        _RANDOM.randrange(int(bounds[0] * denominator) + 1, int(bounds[1] * denominator)), denominator
    )
