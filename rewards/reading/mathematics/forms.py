r"""Equal in form and value: lists, sets, tuples, intervals, matrices and equations, part by part.

The parts are compared as numbers with units where they are some, else by `values.same_value`. math-verify
compares whole texts; by parts there is no doubt about order, brackets, how many solutions, or which name
belongs to which value.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from sympy import Expr

from rewards.reading.mathematics.brackets import balanced, bare, spelling, split
from rewards.reading.mathematics.equations import is_name, sides_of, without_name
from rewards.reading.mathematics.evaluation import EXACT, variables
from rewards.reading.mathematics.quantities import ROUNDED, read_quantity, same_quantity, split_unit
from rewards.reading.mathematics.spelling import canonical
from rewards.reading.mathematics.units import DEGREE
from rewards.reading.mathematics.values import is_number, parsed, same_value

Part = TypeVar("Part")

_LIST = re.compile(
    r"\s*(?:[,;，；]|(?<![\\A-Za-z])(?:and|or)(?![A-Za-z])|\\lor(?![a-z])|[和或与])\s*(?:(?:and|or)\s)?",
    re.IGNORECASE,
)
_MATRIX = re.compile(
    r"(?:\[|\()?\s*\\begin\{([pbB]?matrix|array)\}(?:\{[lcr| ]+\})?(.*)\\end\{\1\}\s*(?:\]|\))?", re.DOTALL
)
_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_ORDER = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|<|>")
_ANY_RELATION = re.compile(r"\\(?:le|ge|ne|neq|in|equiv|sim)(?![a-z])|[<>]")
_TUPLE_OF_NAMES = re.compile(r"\(\s*[A-Za-z](?:_\{?\w{1,5}\}?)?(?:\s*,\s*[A-Za-z](?:_\{?\w{1,5}\}?)?)+\s*\)")
_SUBSCRIPT = re.compile(r"_\{?\w+\}?$")
_WORDS = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z][A-Za-z '-]*|[一-鿿]+")
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}")
_LITERAL = re.compile(r"\\p?mod(?![a-z])|\\equiv|^\s*\d+\s*_")
_TIME = re.compile(r"(\d{1,2})\s*:\s*(\d\d)(?:\s*:\s*(\d\d))?\s*(?:([ap])\.?\s*m\.?)?", re.IGNORECASE)
_UNION = re.compile(r"\\cup(?![a-z])")
_COMMA = re.compile(r"[,;，；]")
_COLON = re.compile(":")
_VARIABLE = re.compile(r"\\?[A-Za-z]+(?:_\{?\w\}?)?|[A-Za-z]\([A-Za-z]\)")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_TWO_NUMBERS = re.compile(r"(?<![_^\d])\d+\s+\d")
#: How far apart the two sides of an ≈ may be.
_ROUGHLY = 0.01


@dataclass(frozen=True)
class Form:
    """How a text is put together.

    Attributes:
        kind: `one`, `list`, `set`, `tuple`, `union`, the two brackets of a pair, or `matrix` with its shape.
        parts: The texts that it is made of; for `one`, the text itself.
        text: The whole text.
    """

    kind: str
    parts: tuple[str, ...]
    text: str


def same(gold: str, answer: str, tolerance: float) -> bool:
    """Check whether two canonical texts are the same mathematics.

    Args:
        gold: The reference, as `spelling.canonical` writes it.
        answer: The answer, likewise.
        tolerance: Relative difference allowed between numbers; 0 allows only what rounding makes.
    """
    if bare(gold) == bare(answer):
        return True
    ours, theirs = read_quantity(gold), read_quantity(answer)
    if ours is not None and theirs is not None:
        return same_quantity(ours, theirs, tolerance)
    if _WORD.search(gold) and spelling(gold) == spelling(answer):
        return True
    if _WORDS.fullmatch(gold) or _LITERAL.search(gold) or _LITERAL.search(answer):
        return spelling(gold) == spelling(answer)
    if ":" in gold or ":" in answer:
        return _same_ratio(gold, answer, tolerance)
    return _same_form(read_form(gold), read_form(answer), tolerance)


def read_form(text: str) -> Form:
    """Take a text apart at its outermost commas, brackets, unions and rows."""
    text = _MEMBER.sub("", text.strip(), count=1) if _MEMBER.match(text.strip()) else text.strip()
    if matrix := _MATRIX.fullmatch(text):
        lines = re.split(r"\\\\(?:\[[^\]]*\])?", matrix.group(2).strip().removesuffix("\\\\"))
        rows = [[canonical(cell) for cell in line.split("&")] for line in lines]
        if len({len(row) for row in rows}) == 1:
            return Form(f"matrix {len(rows)}x{len(rows[0])}", tuple(itertools.chain(*rows)), text)
    pieces = split(text, _UNION)
    if len(pieces) > 1:
        return Form("union", tuple(pieces), text)
    if bracketed := _bracketed(text):
        return bracketed
    parts = _listed(text)
    return Form("list", parts, text) if len(parts) > 1 else Form("one", (text,), text)


def _bracketed(text: str) -> Form | None:
    """Return the set, tuple or pair that the whole text is, or None."""
    for left, right, kind in (("\\{", "\\}", "set"), ("{", "}", "set"), ("\\langle", "\\rangle", "tuple")):
        inner = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and balanced(inner):
            return Form(kind, _listed(inner), text)
    if len(text) < 3 or text[0] not in "([]" or text[-1] not in ")][" or not balanced(text[1:-1]):
        return None
    parts = tuple(split(text[1:-1], _COMMA))
    if len(parts) < 2:
        return None
    # French intervals turn the bracket round: ]0,1[
    kind = ("(" if text[0] == "]" else text[0]) + (")" if text[-1] == "[" else text[-1])
    return Form(kind if len(parts) == 2 else "tuple", parts, text)


def _listed(text: str) -> tuple[str, ...]:
    """Return the texts between commas, «and» and «or»; a ± makes two of one."""
    return tuple(value for part in split(text, _LIST) for value in _signs(part))


def _same_form(gold: Form, answer: Form, tolerance: float) -> bool:
    kinds = {gold.kind, answer.kind}
    if kinds == {"one"}:
        return _same_one(gold.text, answer.text, tolerance)
    if "one" in kinds and (stripped := _value_of(gold, answer)):
        return same(*stripped, tolerance)
    if any(kind.startswith("matrix") for kind in kinds):
        if gold.kind == answer.kind:
            return _in_order(gold.parts, answer.parts, tolerance)
        return "one" in kinds and same_value(
            gold.text, answer.text, _formula_tolerance(gold.text, answer.text, tolerance)
        )
    if kinds <= {"list", "set", "tuple", "()"} or (kinds == {"one", "set"} and "\\emptyset" not in gold.text):
        return _same_list(gold, answer, tolerance)
    ours, theirs = _pieces(gold), _pieces(answer)
    if ours and theirs:
        return _in_any_order(ours, theirs, lambda a, b: _same_piece(a, b, tolerance))
    return "one" in kinds and not kinds & {"list", "tuple"} and same_value(gold.text, answer.text, EXACT)


def _value_of(gold: Form, answer: Form) -> tuple[str, str] | None:
    """Return both texts, an equation without its left side: `A = {1, 2}` or `(x, y) = (1, 2)`."""
    sides = sides_of((gold if gold.kind == "one" else answer).text)
    if len(sides) != 2:
        return None
    given = (
        [sides[1]]
        if _TUPLE_OF_NAMES.fullmatch(sides[0])
        else without_name(sides, reference=gold.kind == "one")
    )
    if given is None:
        return None
    return (given[0], answer.text) if gold.kind == "one" else (gold.text, given[0])


def _same_list(gold: Form, answer: Form, tolerance: float) -> bool:
    """Compare lists and sets in any order, tuples in theirs, and `x=1, y=2` by its names."""
    (names, ours), (other_names, theirs) = _assignments(gold), _assignments(answer)
    if names and other_names:
        return names == other_names and _in_order(ours, theirs, tolerance)
    if {gold.kind, answer.kind} & {"tuple", "()"} or names:
        return "set" not in (gold.kind, answer.kind) and _in_order(ours, theirs, tolerance)
    return _in_any_order(ours, theirs, lambda a, b: same(a, b, tolerance))


def _assignments(form: Form) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of `x=1, y=2` and its values, by name; no names where all are one variable's."""
    pairs = []
    for part in form.parts:
        name, _, value = part.partition("=")
        if not value or "=" in value or not is_name(name.strip()):
            return (), form.parts
        pairs.append((name.strip(), value.strip()))
    if len({_SUBSCRIPT.sub("", name) for name, _ in pairs}) < len(pairs) or len(pairs) < 2:
        return (), tuple(value for _, value in pairs)
    pairs.sort()
    return tuple(name for name, _ in pairs), tuple(value for _, value in pairs)


def _in_order(gold: tuple[str, ...], answer: tuple[str, ...], tolerance: float) -> bool:
    return len(gold) == len(answer) and all(same(a, b, tolerance) for a, b in zip(gold, answer, strict=True))


def _in_any_order(gold: Sequence[Part], answer: Sequence[Part], equal: Callable[[Part, Part], bool]) -> bool:
    """Check whether each part of one has its own equal in the other."""
    left = list(answer)
    if len(gold) != len(left):
        return False
    for part in gold:
        index = next((i for i, other in enumerate(left) if equal(part, other)), None)
        if index is None:
            return False
        del left[index]
    return True


def _pieces(form: Form) -> list[tuple[str, Form]] | None:
    """Return the intervals and sets whose union a form is, each with the variable it is written with."""
    if form.kind in ("union", "list"):
        found = [_pieces(read_form(part)) for part in form.parts]
        return None if None in found else [piece for pieces in found for piece in pieces or []]
    if form.kind == "one":
        interval = _interval(form.text)
        return [interval] if interval else None
    return [("", form)] if form.kind == "set" or len(form.kind) == 2 else None


def _same_piece(gold: tuple[str, Form], answer: tuple[str, Form], tolerance: float) -> bool:
    (name, ours), (other_name, theirs) = gold, answer
    if ours.kind != theirs.kind or (name and other_name and name != other_name):
        return False
    return (
        _same_list(ours, theirs, tolerance)
        if ours.kind == "set"
        else _in_order(ours.parts, theirs.parts, tolerance)
    )


def _interval(text: str) -> tuple[str, Form] | None:
    r"""Return variable and interval of `x < 3`, `3 > x`, `0 \le x < 1`; None for other relations."""
    sides, signs = split(text, _ORDER), [match.group() for match in _ORDER.finditer(text)]
    upward = [sign in ("<", "\\le") for sign in signs]
    if len(sides) != len(signs) + 1 or len(sides) not in (2, 3) or len(set(upward)) != 1:
        return None
    if not upward[0]:
        sides, signs = sides[::-1], signs[::-1]
    strict = [sign in "<>" for sign in signs]
    if len(sides) == 3:
        low, name, high = sides
        kind = "[("[strict[0]] + "])"[strict[1]]
    elif _VARIABLE.fullmatch(sides[0]):
        low, name, high = "-\\infty", *sides
        kind = "(" + "])"[strict[0]]
    else:
        low, name, high = *sides, "\\infty"
        kind = "[("[strict[0]] + ")"
    if not _VARIABLE.fullmatch(name) or not all(name not in _COMMAND.sub("", side) for side in (low, high)):
        return None
    return name, Form(kind, (low, high), text)


def _same_one(gold: str, answer: str, tolerance: float) -> bool:
    """Compare two single texts: relations, equations, formulas."""
    if _ANY_RELATION.search(gold) or _ANY_RELATION.search(answer):
        ours, theirs = _interval(gold), _interval(answer)
        if ours and theirs:
            return _same_piece(ours, theirs, tolerance)
        return same_value(gold, answer, EXACT)
    ours, theirs = sides_of(gold), sides_of(answer)
    if not _consistent(theirs, "\\approx" in answer, tolerance):
        return False
    if (len(ours) > 1) == (len(theirs) > 1) and gold.count("'") != answer.count("'"):
        return False  # a derivative is not its function
    if len(ours) > 1 and len(theirs) > 1:
        if bare(ours[0]) == bare(theirs[0]):
            return same(ours[-1], theirs[-1], tolerance)
        return same_value(f"{ours[0]}={ours[-1]}", f"{theirs[0]}={theirs[-1]}", EXACT)
    if len(ours) == 1 and len(theirs) == 1:
        return _same_formula(gold, answer, tolerance)
    sides, other = (ours, answer) if len(ours) > 1 else (theirs, gold)
    given = without_name(sides, reference=sides is ours)
    if given is None and all(_is_number(side) for side in (sides[0], sides[-1])):  # 2 + 3 = 5
        given = sides
    if given is None:
        return False
    values = given[-2:] if "\\approx" in gold + answer else given[-1:]
    if sides is ours:
        return any(same(value, other, tolerance) for value in values)
    return any(same(other, value, tolerance) for value in values)


def _consistent(sides: list[str], rough: bool, tolerance: float) -> bool:
    """Check whether all sides that can be compared are equal: 4 = 5 is no way to say 5, y = 3x = 2x no 2x."""
    if len(sides) < 2:
        return True
    numbers = [side for side in sides if _is_number(side)]
    allowed = max(tolerance, _ROUGHLY if rough else 0)
    formulas = [side for side in sides[1:-1] if not _is_number(side) and _same_variables(side, sides[-1])]
    return all(same(numbers[-1], number, allowed) for number in numbers[:-1]) and all(
        same(sides[-1], formula, allowed) for formula in formulas
    )


def _same_variables(text: str, other: str) -> bool:
    """Check whether two formulas have the same variables, and any."""
    trees = parsed(text), parsed(other)
    found = [variables(tree) for tree in trees if isinstance(tree, Expr)]
    return len(found) == 2 and found[0] == found[1] != set()


def _is_number(text: str) -> bool:
    return read_quantity(text) is not None or (not _WORD.search(text) and is_number(split_unit(text)[0]))


def _same_formula(gold: str, answer: str, tolerance: float) -> bool:
    """Compare two formulas that are no relations, with their units."""
    (ours, our_unit), (theirs, their_unit) = split_unit(gold), split_unit(answer)
    if our_unit and their_unit:
        if our_unit.dimension != their_unit.dimension:
            return False
        ours = _scaled(ours, our_unit.size / their_unit.size)
    elif our_unit == DEGREE and "\\pi" in theirs:
        ours = f"\\frac{{({ours}) \\pi}}{{180}}"
    elif their_unit == DEGREE and "\\pi" in ours:
        theirs = f"\\frac{{({theirs}) \\pi}}{{180}}"
    if _TWO_NUMBERS.search(theirs):  # the parser would read 1 2 as 12
        return False
    known = {"".join(sorted(word)) for word in _WORD.findall(ours)}
    if any("".join(sorted(word)) not in known for word in _WORD.findall(theirs)):
        return False
    return same_value(ours, theirs, _formula_tolerance(ours, theirs, tolerance))


def _formula_tolerance(gold: str, answer: str, tolerance: float) -> float:
    return max(tolerance, ROUNDED if "." in gold + answer else EXACT)


def _scaled(formula: str, factor: Fraction) -> str:
    return (
        formula if factor == 1 else f"({formula}) \\cdot \\frac{{{factor.numerator}}}{{{factor.denominator}}}"
    )


def _same_ratio(gold: str, answer: str, tolerance: float) -> bool:
    """Compare times of day as such, and ratios part by part: 1:2 is not 2:4."""
    ours, theirs = _TIME.fullmatch(gold), _TIME.fullmatch(answer)
    if ours and theirs:
        if not ours[4] and [int(n or 0) for n in ours.groups()[:3]] == [
            int(n or 0) for n in theirs.groups()[:3]
        ]:
            return True
        return _seconds(ours) == _seconds(theirs)
    left, right = split(gold, _COLON), split(answer, _COLON)
    return len(left) == len(right) and len(left) > 1 and _in_order(tuple(left), tuple(right), tolerance)


def _seconds(time: re.Match[str]) -> int:
    hours, minutes, seconds = (int(number or 0) for number in time.groups()[:3])
    if time[4]:
        hours = hours % 12 + 12 * (time[4] in "pP")
    return 3600 * hours + 60 * minutes + seconds


def _signs(part: str) -> tuple[str, ...]:
    if "\\pm" not in part:
        return (part,)
    return tuple(part.replace("\\pm", a).replace("\\mp", b) for a, b in (("+", "-"), ("-", "+")))
