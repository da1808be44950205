r"""Numbers with units, read without a parser: `1,250`, `3\frac{1}{2}`, `6.02e23`, `12 cm`, `$5`, `50\%`."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rewards.reading.mathematics.units import Unit, read_unit

_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\s*(?:"
    r"(?:(?P<mixed>\d{1,9})\s*(?:\s|(?=\\)))?(?:"
    r"(?P<top>\d{1,300})\s*/\s*(?P<bottom>\d{1,300})"
    r"|\\frac\s*(?:\{\s*(?P<top_sign>-?)\s*(?P<ftop>\d{1,300})\s*\}|(?P<ftop1>\d))"
    r"\s*(?:\{\s*(?P<bottom_sign>-?)\s*(?P<fbottom>\d{1,300})\s*\}|(?P<fbottom1>\d)))"
    r"|10\s*\^\s*\{?\s*(?P<power>-?\d{1,3})(?:\s*\})?"
    r"|(?P<whole>\d{1,3}(?:,\d{3})+|\d{1,3}(?:\ \d{3})+|\d{1,300})?"
    r"(?P<decimal>\.\d{0,300})?(?P<recurring>\\overline\{\d{1,50}\})?"
    r"(?:(?:[eE]|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^)\s*\{?\s*(?P<exponent>[+-]?\d{1,3})(?:\s*\})?)?"
    r")"
)
_PERCENT = re.compile(r"\s*(?:\\?%|percent\b|个?百分点)", re.IGNORECASE)
_CURRENCIES = {"$": "dollar", "€": "euro", "¥": "yuan", "£": "pound", "₹": "rupee"}
_CURRENCIES |= {"USD": "dollar", "EUR": "euro"}
_CURRENCY = re.compile(r"(-?)\s*(?:US)?(\\?\$|[€¥£₹]|USD|EUR)\s*(?=[-\d.])")
_WORDS = re.compile(
    r"\s*(?:[A-Za-z]{3,}|in|of|for|on|at|by)(?:\s+[A-Za-z]{2,}){0,8}\s*(?:\^\s*\{?\d\}?)?|\s*[一-鿿]{1,12}"
)
#: Words after a number that change what it says.
_CHANGING = re.compile(
    r"\b(?:and|or|not|mod|if|then|else|than|maybe|perhaps|less|more|times|minus|plus|to|hundred|thousand|million"
    r"|billion|dozen|half|squared|cubed|factorial|pi|sin|cos|tan|log|sqrt|infty|true|false)\b|[百千万亿或和]|不是",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """A number as it was written.

    Attributes:
        value: The number itself, before its percent sign or unit.
        rounded: Whether it was written with a decimal point, and so may have been rounded.
        percent: Whether a percent sign follows.
        unit: Its unit, or None where there is none that is known.
    """

    value: Fraction
    rounded: bool = False
    percent: bool = False
    unit: Unit | None = None


@lru_cache(maxsize=2048)
def read_quantity(text: str) -> Quantity | None:
    """Read the number, with its unit, that a canonical text is; None where it is anything else.

    Words that are no unit («apples») are passed over.
    """
    unit = None
    if money := _CURRENCY.match(text):
        name = _CURRENCIES[money.group(2).lstrip("\\")]
        unit, text = Unit(((name, 1),), Fraction(1)), money.group(1) + text[money.end() :]
    found = _NUMBER.match(text)
    value = _value(found) if found else None
    if found is None or value is None:
        return None
    rest = text[found.end() :]
    rounded = found["decimal"] is not None and found["recurring"] is None
    if percent := _PERCENT.match(rest):
        return Quantity(value, rounded, percent=True) if _ignorable(rest[percent.end() :]) else None
    if not rest.strip():
        return Quantity(value, rounded, unit=unit)
    if (known := read_unit(rest)) is not None:
        return Quantity(value, rounded, unit=known)
    money_after = _CURRENCIES.get(rest.strip().lstrip("\\"))
    if money_after:
        return Quantity(value, rounded, unit=Unit(((money_after, 1),), Fraction(1)))
    return Quantity(value, rounded, unit=unit) if _ignorable(rest) else None


def split_unit(text: str) -> tuple[str, Unit | None]:
    r"""Split a formula without variables from the unit behind it: `10\pi cm` is `10\pi` and centimetres."""
    for found in re.finditer(
        r"(?<=[\d})\]])(?=[°%])|(?<=[\w})\]])\s+(?=[A-Za-z一-鿿])|(?<=[\d})\]])(?=[A-Za-z一-鿿]{2})", text
    ):
        body, rest = text[: found.start()], text[found.start() :]
        if re.search(r"(?<![\\A-Za-z])[A-Za-z]+(?<!pi)(?![A-Za-z])", re.sub(r"\\[A-Za-z]+", "", body)):
            break
        if (unit := read_unit(rest)) is not None:
            return body.strip(), unit
        if _ignorable(rest):
            return body.strip(), None
    return text, None


def same_quantity(gold: Quantity, answer: Quantity, tolerance: float) -> bool:
    """Check whether two quantities are equal, in the unit of either where only one has a unit.

    A percentage may be written without its sign where the number is above 1 (assumed: `0.5` is then no
    slip for `0.5%`).
    """
    if gold.unit is not None and answer.unit is not None:
        if gold.unit.dimension != answer.unit.dimension:
            return False
        return _near(gold.value * gold.unit.size, answer.value * answer.unit.size, gold, answer, tolerance)
    if gold.percent != answer.percent:
        percent, plain = (gold.value, answer.value) if gold.percent else (answer.value, gold.value)
        if _near(percent / 100, plain, gold, answer, tolerance):
            return True
        return abs(percent) > 1 and _near(percent, plain, gold, answer, tolerance)
    return _near(gold.value, answer.value, gold, answer, tolerance)


#: Relative difference allowed where one side was rounded: 0.333333 for 1/3.
ROUNDED = 1.1e-6
_FLOAT_NOISE = Fraction(1, 10**9)


def _near(a: Fraction, b: Fraction, gold: Quantity, answer: Quantity, tolerance: float) -> bool:
    """Check whether two are equal, or as near as rounding or the tolerance allows."""
    if a == b:
        return True
    allowed = Fraction(tolerance)
    if gold.rounded or answer.rounded:
        allowed = max(allowed, _FLOAT_NOISE if _terminates(a) and _terminates(b) else Fraction(ROUNDED))
    return abs(a - b) <= allowed * max(abs(a), abs(b))


def _terminates(number: Fraction) -> bool:
    """Check whether the number has a finite decimal expansion."""
    return pow(10, number.denominator.bit_length(), number.denominator) == 0


def _ignorable(words: str) -> bool:
    """Check whether words after a number only say what is counted."""
    return not words.strip() or (_WORDS.fullmatch(words) is not None and not _CHANGING.search(words))


def _value(found: re.Match[str]) -> Fraction | None:
    """Return the number that `_NUMBER` matched, or None where that is no number."""
    sign = -1 if found["sign"] == "-" else 1
    if found["power"]:
        return sign * Fraction(10) ** int(found["power"])
    top, bottom = (
        found["top"] or found["ftop"] or found["ftop1"],
        found["bottom"] or found["fbottom"] or found["fbottom1"],
    )
    if bottom:
        if int(bottom) == 0:
            return None
        sign *= -1 if (found["top_sign"] == "-") != (found["bottom_sign"] == "-") else 1
        return sign * (int(found["mixed"] or 0) + Fraction(int(top), int(bottom)))
    whole, decimal = found["whole"] or "", found["decimal"] or ""
    if not whole and len(decimal) < 2:
        return None
    value = Fraction(int(re.sub(r"\D", "", whole) or 0))
    digits = decimal[1:]
    value += Fraction(int(digits), 10 ** len(digits)) if digits else 0
    if found["recurring"]:
        if not decimal:
            return None
        period = re.sub(r"\D", "", found["recurring"])
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits))
    return sign * value * Fraction(10) ** int(found["exponent"] or 0)
