"""What the sides of an equation say: a name and its value, or a relation that is nothing without both."""

import re

from rewards.reading.mathematics.brackets import bare, split
from rewards.reading.mathematics.values import parsed

_EQUALS = re.compile(r"(?<![<>!:=])=(?!=)")
_APPROXIMATELY = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])")
_INDEX = r"(?:_\{[^{}]{1,30}\}|_\w)?'{0,3}"
_OF = r"(?:\s*\([^()]{1,20}\))?"
#: A letter, a command, a function of something, a segment: what an answer may name.
_NAME = re.compile(
    rf"\\?[A-Za-z]+(?:\s*[A-Za-z]{{1,4}})?{_INDEX}(?:\^\{{?(?:-1|T)\}}?)?{_OF}|\|[A-Za-z]{{1,2}}\|"
)
#: What has a value of its own, so that a reference may be told without it. The product xy has none: xy = 4
#: is a curve.
_LONE_NAME = re.compile(
    rf"(?:[A-Za-z]|[A-Z]{{2,5}}|\\?[A-Za-z]{{3,}}(?:\s+[A-Za-z]{{1,8}}){{0,3}}){_INDEX}(?:\^\{{?(?:-1|T)\}}?)?{_OF}"
    r"|\\(?:bar|hat|vec|tilde|overline|overrightarrow|widehat)\s*\{[A-Za-z]{1,3}\}"
    r"|\|(?:[A-Z]{2}|\\(?:vec|overrightarrow)\s*\{[A-Za-z]{1,2}\})\|"
    r"|[A-Z]?[a-z]?\\angle\s*[A-Z]{1,3}|\\frac\s*\{d[A-Za-z]?\^?\d?[A-Za-z]?\}\s*\{d[A-Za-z]\^?\d?\}"
    r"|\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\\[a-z]+|[A-Z])"
)
_LETTERS = re.compile(r"\\?[A-Za-z]+(?:_\{?\w{1,5}\}?)?")
_DIGIT = re.compile(r"\d")
_SUBSCRIPTS = re.compile(r"_\{?\w+\}?")
_SCRIPTS = re.compile(r"[_^]\{?\w+\}?")


def sides_of(text: str) -> list[str]:
    """Return what stands between the equality signs of a text, exact and rough ones."""
    return [side for part in split(text, _APPROXIMATELY) for side in split(part, _EQUALS)]


def is_name(text: str) -> bool:
    """Check whether a text only names something."""
    return _NAME.fullmatch(text) is not None


def without_name(sides: list[str], *, reference: bool) -> list[str] | None:
    """Return the sides that an equation gives as a value, or None where it is more than a value.

    An answer may say whose value it gives, as in `x = 5`, `x^2 + y^2 = 4` or `2 + 3 = 5`. Of a reference
    only a lone name may be left out, as in `y = 2x + 1`: without its left side the circle `x^2 + y^2 = 4`
    is no circle. Neither gives a value for something that the value itself mentions.

    Args:
        sides: Two sides or more.
        reference: Whether the equation is the reference.
    """
    if is_name(sides[-1]) and not is_name(sides[0]):
        sides = sides[::-1]
    name, last = sides[0], sides[-1]
    named = _LONE_NAME.fullmatch(name) if reference else is_name(name) or is_unknown(name, last)
    return sides[1:] if named and not _mentions(last, name) else None


def is_unknown(text: str, value: str) -> bool:
    """Check whether an answer may give the value of this: `x^2 + y^2`, but not `2x` in `2x = 10`."""
    digits = _DIGIT.search((_SUBSCRIPTS if value == "0" else _SCRIPTS).sub("", text))
    return not digits and parsed(text) is not None


def _mentions(value: str, name: str) -> bool:
    """Check whether a value has the variables of the name that it is given for, f(x) being an f."""
    names = {bare(word) for word in _LETTERS.findall(re.sub(r"\([^()]*\)$", "", name)) if word[0] != "\\"}
    return any(bare(word) in names for word in _LETTERS.findall(value))
