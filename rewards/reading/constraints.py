"""Verifiable constraints on an answer: one table of small checks, named in a dataset's list.

A constraint is an object with a `type`, mostly a `value`, and for some types options:
`{"type": "contains", "value": ["cat"], "count": 2}`. `CHECKS` has all types; what they demand stands in
`rewards.reading.constraint_checks`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from posttrain.files.nearest import nearest
from posttrain.files.strict_json import JsonError, parse_json
from rewards.reading import constraint_checks as checks
from rewards.reading import units
from rewards.reading.answers import normalise
from rewards.reading.constraint_checks import Answer
from rewards.reading.languages import CODES
from rewards.reading.schemas import read_schema

#: A type, mostly a value, and options, checked by `read_constraints`.
Constraint: TypeAlias = dict[str, Any]

MAX_CONSTRAINTS = 100


# What a value or option may be: each returns what is expected, or "" where the value is right.


def _whole(least: int) -> Callable[[object], str]:
    def expected(value: object) -> str:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return "" if right else f"a whole number from {least} up"

    return expected


def _is_text(value: object) -> str:
    return "" if isinstance(value, str) and value.strip() else "a text that is not empty"


def _is_texts(value: object) -> str:
    right = isinstance(value, list) and value and not any(map(_is_text, value))
    return "" if right or not _is_text(value) else "a text or a list of texts, none of them empty"


def _is_letter(value: object) -> str:
    return "" if isinstance(value, str) and len(value) == 1 and value.strip() else "one character"


def _no_value(_: object) -> str:
    return "left out"


def _is_options(value: object) -> str:
    options = [option for option in value if isinstance(option, str)] if isinstance(value, list) else []
    right = len(options) > 1 and isinstance(value, list) and len(options) == len(value)
    right = right and all(map(units.has_content, options))
    return (
        ""
        if right and len(set(map(normalise, options))) == len(options)
        else "a list of at least two different texts"
    )


def _is_language(value: object) -> str:
    return "" if value in CODES else f"one of {', '.join(sorted(CODES))}"


def _is_schema(value: object) -> str:
    read_schema(value)
    return ""


@dataclass(frozen=True)
class Check:
    """One type of constraint.

    Attributes:
        passes: `passes(answer, value, **options)`.
        value: What its value must be.
        options: The other keys that it takes.
        required: Whether it needs a value.
        one_of: Options of which at least one must be given.
    """

    passes: Callable[..., bool]
    value: Callable[[object], str]
    options: dict[str, Callable[[object], str]] = field(default_factory=dict)
    required: bool = True
    one_of: tuple[str, ...] = ()


_RANGE = {"min": _whole(0), "max": _whole(0)}
_AT_LEAST_ONE = ("words", "sentences", "paragraphs", "characters", "lines")

#: Every type of constraint; the sources are IFEval's 25 instructions (arXiv 2311.07911) and their opposites.
CHECKS: dict[str, Check] = {
    "contains": Check(checks.contains, _is_texts, {"count": _whole(1)}),
    "contains_any": Check(checks.contains_any, _is_texts),
    "excludes": Check(checks.excludes, _is_texts),
    "frequency": Check(checks.has_frequency, _is_text, _RANGE, one_of=("min", "max")),
    "letter_frequency": Check(checks.has_letter_frequency, _is_letter, _RANGE, one_of=("min", "max")),
    "all_lowercase": Check(checks.is_lowercase, _no_value, required=False),
    "all_uppercase": Check(checks.is_uppercase, _no_value, required=False),
    "starts_with": Check(checks.starts_with, _is_text),
    "ends_with": Check(checks.ends_with, _is_text),
    "paragraph_starts_with": Check(checks.paragraph_starts_with, _is_text, {"paragraph": _whole(1)}),
    "sections": Check(checks.has_sections, _is_texts),
    "numbered_sections": Check(checks.has_numbered_sections, _whole(1), {"mark": _is_text}),
    "divided_paragraphs": Check(checks.has_divided_paragraphs, _whole(1), {"separator": _is_text}),
    "title": Check(checks.has_title, _no_value, required=False),
    "postscript": Check(checks.has_postscript, _is_text, required=False),
    "no_commas": Check(checks.has_no_commas, _no_value, required=False),
    "quoted": Check(checks.is_quoted, _no_value, required=False),
    "json": Check(checks.is_json, _no_value, required=False),
    "json_schema": Check(checks.fits_schema, _is_schema),
    "language": Check(checks.in_language, _is_language),
    "choice": Check(checks.is_choice, _is_options),
    "repeat_prompt": Check(checks.repeats_prompt, _is_text, required=False),
    "responses": Check(checks.has_responses, _whole(2), {"separator": _is_text}),
}
for _unit in units.COUNTED:
    _least = 1 if _unit in _AT_LEAST_ONE else 0
    CHECKS[f"min_{_unit}"] = Check(checks.number_of(_unit, int.__ge__), _whole(1))
    CHECKS[f"max_{_unit}"] = Check(checks.number_of(_unit, int.__le__), _whole(_least))
    CHECKS[f"exact_{_unit}"] = Check(checks.number_of(_unit, int.__eq__), _whole(_least))


def read_constraints(value: object) -> list[Constraint]:
    """Read a dataset's list of constraints and check it; JSON text is read first.

    Raises:
        ValueError: If it is no such list, a type is unknown (naming the nearest), or a value or option is
            wrong.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except JsonError as error:
            raise ValueError(f"constraints are not JSON ({error}); correct the dataset") from None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CONSTRAINTS:
        raise ValueError(f"constraints must be a list of 1 to {MAX_CONSTRAINTS} objects; correct the dataset")
    return [_read(item) for item in value]


def passes(constraint: Constraint, answer: Answer) -> bool:
    """Check whether an answer satisfies one constraint of `read_constraints`."""
    options = {key: item for key, item in constraint.items() if key != "type"}
    return CHECKS[constraint["type"]].passes(answer, **options)


def _read(item: object) -> Constraint:
    """Read one constraint, without its empty keys, which Arrow tables add to every row."""
    if not isinstance(item, dict) or not isinstance(kind := item.get("type"), str):
        raise ValueError(f"the constraint {str(item)[:80]!r} is no object with a type; correct the dataset")
    if kind not in CHECKS:
        near = nearest(kind, CHECKS)
        hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(sorted(CHECKS))}"
        raise ValueError(f"unknown constraint {kind!r}{hint}")
    check = CHECKS[kind]
    given = {key: value for key, value in item.items() if value is not None}
    if check.required and "value" not in given:
        raise ValueError(f"the constraint {kind!r} needs a value: {check.value(None)}")
    if check.one_of and not given.keys() & set(check.one_of):
        raise ValueError(f"the constraint {kind!r} needs {' or '.join(check.one_of)}")
    allowed = {"value": check.value, **check.options}
    for key in given.keys() - {"type"}:
        if key not in allowed:
            raise ValueError(f"the constraint {kind!r} takes no {key!r}; it takes {', '.join(allowed)}")
        if expected := allowed[key](given[key]):
            raise ValueError(f"the constraint {kind!r}: {key} is {given[key]!r}; it must be {expected}")
    return given
