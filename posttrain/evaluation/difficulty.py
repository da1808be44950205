"""Bins of prompts by how hard their rows say that they are."""

import math
from collections.abc import Sequence
from statistics import quantiles

#: Ends of the bins of a share, such as a pass rate; 0 and 1 are bins of their own.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Values of a column that are told apart; of more, numbers are put into quarters.
MAX_VALUES = 10


def difficulty_bins(values: Sequence[object], column: str) -> list[str | None]:
    """Return the bin of each row, by what its column says; None for a row that says nothing usable.

    Shares from 0 to 1 are told apart by quarters, with 0 and 1 apart; a few values each have a bin; of many
    numbers there are four bins of about the same size, and of many words none.

    Args:
        values: What the rows have in the column; None where one has nothing.
        column: The column's name, with which the names of the bins begin.

    Example:
        difficulty_bins([0.0, 0.3, None], "pass_rate") == ["pass_rate 0", "pass_rate 0.25 – 0.5", None]
    """
    numbers = [_number(value) for value in values]
    words = [value if isinstance(value, str) and value else None for value in values]
    known = [number for number in numbers if number is not None]
    if any(word is not None for word in words):
        told = [
            word if number is None else f"{number:g}" for number, word in zip(numbers, words, strict=True)
        ]
        named = told if len(set(told) - {None}) <= MAX_VALUES else [None] * len(told)
    elif any(number % 1 for number in known) and all(0 <= number <= 1 for number in known):
        named = [None if number is None else _share_bin(number) for number in numbers]
    elif len(set(known)) <= MAX_VALUES:
        named = [None if number is None else f"{number:g}" for number in numbers]
    else:
        ends = quantiles(known, n=4)
        named = [None if number is None else _quarter(number, ends) for number in numbers]
    return [None if name is None else f"{column} {name}" for name in named]


def bins_in_order(bins: Sequence[str | None], values: Sequence[object]) -> list[str]:
    """Return the bins that have rows: numbers from the least to the largest, then words."""
    least: dict[str, tuple[float, str]] = {}
    for name, value in zip(bins, values, strict=True):
        if name is not None:
            number = _number(value)
            key = (math.inf, name) if number is None else (number, name)
            least[name] = min(key, least.get(name, key))
    return sorted(least, key=lambda name: least[name])


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _share_bin(share: float) -> str:
    if share in (0, 1):
        return f"{share:g}"
    place = next(i for i, end in enumerate(SHARES) if share <= end)
    return f"{SHARES[place - 1]:g} – {SHARES[place]:g}"


def _quarter(number: float, ends: Sequence[float]) -> str:
    place = sum(number > end for end in ends)
    if place == len(ends):
        return f"> {ends[-1]:.3g}"
    return f"≤ {ends[0]:.3g}" if place == 0 else f"{ends[place - 1]:.3g} – {ends[place]:.3g}"
