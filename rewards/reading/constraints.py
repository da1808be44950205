"""Verifiable constraints on an answer: one table of small checks, named in a dataset's list.

A constraint is an object with a `type`, mostly a `value`, and for some types options:
`{"type": "contains", "value": ["cat"], "count": 2}`. `CHECKS` has all types. Case does not matter where words
are compared, and a word is found only as a whole word (a character of Chinese or Japanese anywhere).
"""

import difflib
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from posttrain.files.strict_json import Json, JsonError, parse_json
from rewards.reading import units
from rewards.reading.answers import normalise
from rewards.reading.languages import CODES, languages_of
from rewards.reading.schemas import answer_json, read_schema, violation

#: A type, mostly a value, and options, checked by `read_constraints`.
Constraint: TypeAlias = dict[str, Any]

MAX_CONSTRAINTS = 100
_COMMAS = ",，、،﹐"
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」"}
_HEADING_MARKS = re.compile(r"[#*_\s]{0,20}(?:\d{1,3}[.)]\s*)?")
#: Marks around a text that are no part of it.
_AROUND = "\"'“”‘’*_ "


class Answer:
    """An answer with its units, each counted once however many constraints ask for it.

    Args:
        text: What the model answered.
        prompt: The last user turn.
    """

    def __init__(self, text: str, prompt: str = ""):
        self.text = units.visible(text)
        self.prompt = prompt
        self._counts: dict[str, int] = {}

    @cached_property
    def flat(self) -> str:
        """The text with single spaces, case folded."""
        return _flat(self.text)

    @cached_property
    def languages(self) -> frozenset[str]:
        """The languages that the text can be in."""
        return languages_of(self.text)

    @cached_property
    def json(self) -> tuple[Json, bool]:
        """The JSON that it holds, and whether there is any."""
        try:
            return answer_json(self.text), True
        except JsonError:
            return None, False

    def count(self, unit: str) -> int:
        """Count the units of one kind."""
        if unit not in self._counts:
            self._counts[unit] = len(units.COUNTED[unit](self.text))
        return self._counts[unit]


def _flat(text: str) -> str:
    return " ".join(text.split()).casefold()


@functools.lru_cache(maxsize=1024)
def _word(text: str) -> re.Pattern[str]:
    """Compile a pattern of a word or phrase, which no other letters may touch."""
    text = _flat(text)
    whole = re.compile(rf"[^\W{units.WIDE}]")
    before = r"(?<!\w)" if whole.match(text[0]) else ""
    after = r"(?!\w)" if whole.match(text[-1]) else ""
    return re.compile(before + re.escape(text) + after)


def _occurrences(answer: Answer, text: str) -> int:
    return sum(1 for _ in _word(text).finditer(answer.flat))


def _contains(answer: Answer, value: str | list[str], count: int = 1) -> bool:
    """Require each of the words at least `count` times."""
    return all(_occurrences(answer, text) >= count for text in _listed(value))


def _contains_any(answer: Answer, value: str | list[str]) -> bool:
    """Require at least one of the words."""
    return any(_occurrences(answer, text) for text in _listed(value))


def _excludes(answer: Answer, value: str | list[str]) -> bool:
    """Require none of the words."""
    return not _contains_any(answer, value)


def _frequency(answer: Answer, value: str, min: int = 0, max: int | None = None) -> bool:  # noqa: A002
    """Require the word from `min` to `max` times."""
    found = _occurrences(answer, value)
    return min <= found and (max is None or found <= max)


def _letter_frequency(answer: Answer, value: str, min: int = 0, max: int | None = None) -> bool:  # noqa: A002
    """Require the character from `min` to `max` times, in either case."""
    found = answer.flat.count(value.casefold())
    return min <= found and (max is None or found <= max)


def _starts(text: str, value: str) -> bool:
    return any(_word(value).match(flat) for flat in (_flat(text), _flat(text.lstrip(_AROUND + "#"))))


def _starts_with(answer: Answer, value: str) -> bool:
    """Require the first words; quotation marks and Markdown before them do not matter."""
    return _starts(answer.text[: 4 * len(value) + 1000], value)


def _ends_with(answer: Answer, value: str) -> bool:
    """Require the last words; quotation marks and Markdown after them do not matter."""
    tail = answer.text[-4 * len(value) - 1000 :]
    wanted = _flat(value)
    return any(
        flat.endswith(wanted) and _word(value).search(flat, len(flat) - len(wanted)) is not None
        for flat in (_flat(tail), _flat(tail.rstrip(_AROUND)))
    )


def _paragraph_starts_with(answer: Answer, value: str, paragraph: int = 1) -> bool:
    """Require the first words of the paragraph with that number, counted from 1."""
    blocks = units.paragraphs(answer.text)
    return len(blocks) >= paragraph and _starts(blocks[paragraph - 1], value)


def _heading_name(line: str) -> str | None:
    """Return the name that a line has as a heading (`# Name`, `**Name**`, `Name:`), or None."""
    line = line.strip()
    if len(line) > 200 or not (line.startswith(("#", "**", "__")) or line.endswith((":", "："))):
        return None
    return _flat(_HEADING_MARKS.sub("", line, count=1).rstrip("*_#:： "))


def _sections(answer: Answer, value: str | list[str]) -> bool:
    """Require sections with these headings in this order, none of them empty."""
    wanted = [_flat(name) for name in _listed(value)]
    found: list[str] = []
    filled: set[int] = set()
    for line in units.lines(answer.text):
        name = _heading_name(line)
        if name in wanted:
            found.append(name)
        elif found and units.has_content(line):
            filled.add(len(found) - 1)
    return found == wanted and len(filled) == len(wanted)


def _title(answer: Answer) -> bool:
    """Require a title: `<<…>>` on any line, or `# …` as the first."""
    lines = units.lines(answer.text)
    marked = (line.partition("<<")[2].partition(">>") for line in lines if "<<" in line)
    first = lines[0] if lines else ""
    return first.startswith("# ") or any(end and units.has_content(title) for title, end, _ in marked)


def _postscript(answer: Answer, value: str = "P.S.") -> bool:
    """Require a line that starts with the mark and goes on, after at least one other."""
    marked = [line.strip().lstrip("*_ ") for line in units.lines(answer.text)[1:]]
    mark = value.casefold()
    return any(line.casefold().startswith(mark) and units.has_content(line[len(mark) :]) for line in marked)


def _no_commas(answer: Answer) -> bool:
    """Require no comma of any script."""
    return not any(comma in answer.text for comma in _COMMAS)


def _quoted(answer: Answer) -> bool:
    """Require the whole answer in one pair of double quotation marks."""
    text = answer.text
    closing = _QUOTES.get(text[:1], "")
    inner = text[1:-1]
    whole = bool(closing) and len(text) > 2 and text.endswith(closing) and closing not in inner
    return whole and units.has_content(inner)


def _json(answer: Answer) -> bool:
    """Require a JSON object or list, alone or in the one fenced block."""
    found, _ = answer.json
    return isinstance(found, dict | list)


def _json_schema(answer: Answer, value: object) -> bool:
    """Require JSON that satisfies the schema."""
    found, there = answer.json
    return there and not violation(read_schema(value), found)


def _language(answer: Answer, value: str) -> bool:
    """Require the language by its ISO 639-1 code; an answer too short to tell passes."""
    return not answer.languages or value in answer.languages


def _choice(answer: Answer, value: list[str]) -> bool:
    """Require exactly one of the options and nothing else, but for case and surrounding punctuation."""
    if len(answer.text) > 2 * max(map(len, value)) + 100:
        return False
    return normalise(answer.text) in {normalise(option) for option in value}


def _repeat_prompt(answer: Answer, value: str = "") -> bool:
    """Require the prompt (or `value`) word for word first, and then something more."""
    wanted = _flat(units.visible(value or answer.prompt))
    if not wanted:
        raise ValueError("the constraint 'repeat_prompt' has neither a value nor a prompt to repeat")
    text = answer.flat.lstrip(_AROUND)
    wanted = wanted.lstrip(_AROUND)
    return text.startswith(wanted) and units.has_content(text[len(wanted) :])


def _responses(answer: Answer, value: int, separator: str = "******") -> bool:
    """Require that many different responses, with the separator between them."""
    parts = [_flat(part) for part in answer.text.split(separator)]
    return len(parts) == value == len(set(parts)) and all(map(units.has_content, parts))


def _all_lowercase(answer: Answer) -> bool:
    """Require all cased letters small, and at least one of them."""
    return answer.text.islower()


def _all_uppercase(answer: Answer) -> bool:
    """Require all cased letters capitals, and at least one of them."""
    return answer.text.isupper()


def _number_of(unit: str, compare: Callable[[int, int], bool]) -> Callable[..., bool]:
    def check(answer: Answer, value: int) -> bool:
        return compare(answer.count(unit), value)

    return check


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


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
    "contains": Check(_contains, _is_texts, {"count": _whole(1)}),
    "contains_any": Check(_contains_any, _is_texts),
    "excludes": Check(_excludes, _is_texts),
    "frequency": Check(_frequency, _is_text, _RANGE, one_of=("min", "max")),
    "letter_frequency": Check(_letter_frequency, _is_letter, _RANGE, one_of=("min", "max")),
    "all_lowercase": Check(_all_lowercase, _no_value, required=False),
    "all_uppercase": Check(_all_uppercase, _no_value, required=False),
    "starts_with": Check(_starts_with, _is_text),
    "ends_with": Check(_ends_with, _is_text),
    "paragraph_starts_with": Check(_paragraph_starts_with, _is_text, {"paragraph": _whole(1)}),
    "sections": Check(_sections, _is_texts),
    "title": Check(_title, _no_value, required=False),
    "postscript": Check(_postscript, _is_text, required=False),
    "no_commas": Check(_no_commas, _no_value, required=False),
    "quoted": Check(_quoted, _no_value, required=False),
    "json": Check(_json, _no_value, required=False),
    "json_schema": Check(_json_schema, _is_schema),
    "language": Check(_language, _is_language),
    "choice": Check(_choice, _is_options),
    "repeat_prompt": Check(_repeat_prompt, _is_text, required=False),
    "responses": Check(_responses, _whole(2), {"separator": _is_text}),
}
for _unit in units.COUNTED:
    _least = 1 if _unit in _AT_LEAST_ONE else 0
    CHECKS[f"min_{_unit}"] = Check(_number_of(_unit, int.__ge__), _whole(1))
    CHECKS[f"max_{_unit}"] = Check(_number_of(_unit, int.__le__), _whole(_least))
    CHECKS[f"exact_{_unit}"] = Check(_number_of(_unit, int.__eq__), _whole(_least))


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
        near = difflib.get_close_matches(kind, CHECKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(CHECKS))}"
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
