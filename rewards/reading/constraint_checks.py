"""What each kind of constraint demands of an answer: small checks of a text, in time linear in it.

Case does not matter where words are compared, and a word is found only as a whole word (a character of
Chinese or Japanese anywhere).
"""

import functools
import re
from collections.abc import Callable
from functools import cached_property

from posttrain.files.strict_json import Json, JsonError
from rewards.reading import units
from rewards.reading.answers import normalise
from rewards.reading.languages import languages_of
from rewards.reading.schemas import answer_json, read_schema, violation

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


def contains(answer: Answer, value: str | list[str], count: int = 1) -> bool:
    """Require each of the words at least `count` times."""
    return all(_occurrences(answer, text) >= count for text in _listed(value))


def contains_any(answer: Answer, value: str | list[str]) -> bool:
    """Require at least one of the words."""
    return any(_occurrences(answer, text) for text in _listed(value))


def excludes(answer: Answer, value: str | list[str]) -> bool:
    """Require none of the words."""
    return not contains_any(answer, value)


def has_frequency(answer: Answer, value: str, min: int = 0, max: int | None = None) -> bool:  # noqa: A002
    """Require the word from `min` to `max` times."""
    found = _occurrences(answer, value)
    return min <= found and (max is None or found <= max)


def has_letter_frequency(answer: Answer, value: str, min: int = 0, max: int | None = None) -> bool:  # noqa: A002
    """Require the character from `min` to `max` times, in either case."""
    found = answer.flat.count(value.casefold())
    return min <= found and (max is None or found <= max)


def _starts(text: str, value: str) -> bool:
    return any(_word(value).match(flat) for flat in (_flat(text), _flat(text.lstrip(_AROUND + "#"))))


def starts_with(answer: Answer, value: str) -> bool:
    """Require the first words; quotation marks and Markdown before them do not matter."""
    return _starts(answer.text[: 4 * len(value) + 1000], value)


def ends_with(answer: Answer, value: str) -> bool:
    """Require the last words; quotation marks and Markdown after them do not matter."""
    tail = answer.text[-4 * len(value) - 1000 :]
    wanted = _flat(value)
    return any(
        flat.endswith(wanted) and _word(value).search(flat, len(flat) - len(wanted)) is not None
        for flat in (_flat(tail), _flat(tail.rstrip(_AROUND)))
    )


def paragraph_starts_with(answer: Answer, value: str, paragraph: int = 1) -> bool:
    """Require the first words of the paragraph with that number, counted from 1."""
    blocks = units.paragraphs(answer.text)
    return len(blocks) >= paragraph and _starts(blocks[paragraph - 1], value)


def _heading_name(line: str) -> str | None:
    """Return the name that a line has as a heading (`# Name`, `**Name**`, `Name:`), or None."""
    line = line.strip()
    if len(line) > 200 or not (line.startswith(("#", "**", "__")) or line.endswith((":", "："))):
        return None
    return _flat(_HEADING_MARKS.sub("", line, count=1).rstrip("*_#:： "))


def has_sections(answer: Answer, value: str | list[str]) -> bool:
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


def has_title(answer: Answer) -> bool:
    """Require a title: `<<…>>` on any line, or `# …` as the first."""
    lines = units.lines(answer.text)
    marked = (line.partition("<<")[2].partition(">>") for line in lines if "<<" in line)
    first = lines[0] if lines else ""
    return first.startswith("# ") or any(end and units.has_content(title) for title, end, _ in marked)


def has_numbered_sections(answer: Answer, value: int, mark: str = "Section") -> bool:
    """Require at least that many sections that begin with the mark and a number each, none of them empty.

    `Section 1`, `**SECTION 2:** …` and `# Day 3` do; a number that comes again begins no other section.
    """
    spaced = r"\s+".join(map(re.escape, _flat(mark).split()))
    begin = re.compile(rf"(?<!\w){spaced}\s?(\d{{1,4}})(?!\w)")
    found = list(begin.finditer(answer.flat))
    ends = [*(following.start() for following in found[1:]), len(answer.flat)]
    filled = {
        int(start[1])
        for start, end in zip(found, ends, strict=False)
        if units.has_content(answer.flat[start.end() : end])
    }
    return len(filled) >= value


def has_divided_paragraphs(answer: Answer, value: int, separator: str = "***") -> bool:
    """Require exactly that many paragraphs with the separator, alone between spaces, between them."""
    parts = _divided(re.split(rf"(?<!\S){re.escape(separator.strip())}(?!\S)", answer.text))
    return len(parts) == value and all(map(units.has_content, parts))


def _divided(parts: list[str]) -> list[str]:
    """Return the parts between separators, without an empty one before the first or after the last."""
    first, last = int(not parts[0].strip()), len(parts) - int(not parts[-1].strip())
    return parts[first:last]


def has_postscript(answer: Answer, value: str = "P.S.") -> bool:
    """Require a line that starts with the mark (`P. S.` is `P.S.`) and goes on, after at least one other."""
    mark = re.compile(r"\s?".join(re.escape(c) for c in value.casefold() if not c.isspace()))
    lines = [line.strip().lstrip("*_ ").casefold() for line in units.lines(answer.text)[1:]]
    found = ((line, mark.match(line)) for line in lines)
    return any(start and units.has_content(line[start.end() :]) for line, start in found)


def has_no_commas(answer: Answer) -> bool:
    """Require no comma of any script."""
    return not any(comma in answer.text for comma in _COMMAS)


def is_quoted(answer: Answer) -> bool:
    """Require the whole answer in one pair of double quotation marks."""
    text = answer.text
    closing = _QUOTES.get(text[:1], "")
    inner = text[1:-1]
    whole = bool(closing) and len(text) > 2 and text.endswith(closing) and closing not in inner
    return whole and units.has_content(inner)


def is_json(answer: Answer) -> bool:
    """Require a JSON object or list, alone or in the one fenced block."""
    found, _ = answer.json
    return isinstance(found, dict | list)


def fits_schema(answer: Answer, value: object) -> bool:
    """Require JSON that satisfies the schema."""
    found, there = answer.json
    return there and not violation(read_schema(value), found)


def in_language(answer: Answer, value: str) -> bool:
    """Require the language by its ISO 639-1 code; an answer too short to tell passes."""
    return not answer.languages or value in answer.languages


def is_choice(answer: Answer, value: list[str]) -> bool:
    """Require exactly one of the options and nothing else, but for case and surrounding punctuation."""
    if len(answer.text) > 2 * max(map(len, value)) + 100:
        return False
    return normalise(answer.text) in {normalise(option) for option in value}


def repeats_prompt(answer: Answer, value: str = "") -> bool:
    """Require the prompt (or `value`) word for word first, and then something more."""
    wanted = _flat(units.visible(value or answer.prompt))
    if not wanted:
        raise ValueError("the constraint 'repeat_prompt' has neither a value nor a prompt to repeat")
    text = answer.flat.lstrip(_AROUND)
    wanted = wanted.lstrip(_AROUND)
    return text.startswith(wanted) and units.has_content(text[len(wanted) :])


def has_responses(answer: Answer, value: int, separator: str = "******") -> bool:
    """Require that many different responses, with the separator between them."""
    parts = [_flat(part) for part in _divided(answer.text.split(separator))]
    return len(parts) == value == len(set(parts)) and all(map(units.has_content, parts))


def is_lowercase(answer: Answer) -> bool:
    """Require all cased letters small, and at least one of them."""
    return answer.text.islower()


def is_uppercase(answer: Answer) -> bool:
    """Require all cased letters capitals, and at least one of them."""
    return answer.text.isupper()


def number_of(unit: str, compare: Callable[[int, int], bool]) -> Callable[..., bool]:
    """Make a check that compares how often a unit occurs with the value."""

    def check(answer: Answer, value: int) -> bool:
        return compare(answer.count(unit), value)

    return check


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
