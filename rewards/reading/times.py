"""Stretches of time in a text that a model wrote: `from 3.2 to 8.5 seconds`, `00:03-00:08`, JSON.

The text is split into tokens (times, words, marks) once, and stretches are found among tokens near to each
other, so that the time is linear in its length.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from posttrain.files.strict_json import JsonError
from posttrain.messages import without_thinking
from rewards.reading.answers import final_answer
from rewards.reading.schemas import answer_json

#: Of a longer answer only the end is read.
MAX_LENGTH = 50_000
#: A longer video is none.
MAX_SECONDS = 1e6

Unit = Literal["h", "m", "s", "clock", ""]

_HOURS = "h hr hrs hour hours 小时 时 時間 시간 stunde stunden heure heures hora horas"
_MINUTES = "m min mins minute minutes 分钟 分 분 minuten minuto minutos minuti минута минуты минут"
_SECONDS = (
    "s sec secs second seconds 秒钟 秒 초 sek sekunde sekunden seconde secondes segundo segundos secondi"
    " секунда секунду секунды секунд"
)
_UNITS: dict[str, tuple[float, Unit]] = {
    **dict.fromkeys(_HOURS.split(), (3600.0, "h")),
    **dict.fromkeys(_MINUTES.split(), (60.0, "m")),
    **dict.fromkeys(_SECONDS.split(), (1.0, "s")),
}
_SMALLER: dict[Unit, Sequence[Unit]] = {"h": ("m", "s"), "m": ("s",)}
_TOKEN = re.compile(
    r"(?P<clock>(?<![\d.:])\d{1,3}:\d{1,2}(?::\d{1,2})?(?:\.\d{1,6})?(?![\d:]))"
    r"|(?P<number>(?:(?<![A-Za-z0-9_])(?<!\d\.)|(?<=\d[hms]))\d{1,7}(?:\.\d{1,9})?)"
    rf"(?:[\s-]?(?P<unit>{'|'.join(sorted(_UNITS, key=len, reverse=True))})(?![a-zа-я])|(?![\d:]))"
    r"|(?P<mark>-{1,2}>|\.{2,3}|开始|结束|大约|から|부터|[^\W\d_\u3040-\u9fff\uac00-\ud7a3]+|[^\W\d_]|[^\w\s])",
    re.IGNORECASE,
)
_BETWEEN = frozenset(
    "- – — − ~ ～ 〜 to until till through -> --> → .. ... 到 至 から 부터 bis à hasta по до".split()
)
_AND = frozenset(("and", "和", "与"))
_COMMAS = frozenset(",，;、")
_OPEN, _CLOSE = frozenset("[(<（【"), frozenset("])>）】")
_FIRST = frozenset(
    ("start", "starts", "starting", "started", "begin", "begins", "beginning", "began", "开始")
)
_LAST = frozenset(("end", "ends", "ending", "ended", "stop", "stops", "finishes", "结束"))
_FROM = frozenset(("between", "from", "从", "在"))
#: A stretch of which the words before it in its clause say that it is not.
_DENIED = frozenset(
    "not never isn doesn don didn wasn cannot 不 没 非 nicht kein pas ne не нет なく 아니".split()
)
_CLAUSE_ENDS = frozenset((*".!?;,:，。；！？、", "but", "而是"))
_BEFORE = 8
#: Words and marks that may stand between a time and what joins it with the next.
_FILL = frozenset(
    "at about around approximately roughly the mark timestamp time of in video up t text second".split()
    + "大约 约 第 * ` ' \" \\ / { } : =".split()
)
_NEAR = 10
#: Where start and end stand on lines of their own, these are searched.
_LAST_LINES = 4
_KEYS = (
    ("start", "end"),
    ("start_time", "end_time"),
    ("begin", "end"),
    ("from", "to"),
    ("start_sec", "end_sec"),
)
_LISTS = (
    "segments",
    "timestamps",
    "timestamp",
    "times",
    "time",
    "span",
    "spans",
    "segment",
    "moments",
    "intervals",
)


@dataclass(frozen=True)
class Segment:
    """A stretch of time, in seconds.

    Attributes:
        start, end: From when to when.
    """

    start: float
    end: float

    @property
    def valid(self) -> bool:
        """Whether it is one: it ends after it starts, both within a video."""
        return 0 <= self.start < self.end <= MAX_SECONDS


@dataclass(frozen=True)
class _Token:
    """A time with its unit, or a word or mark.

    Attributes:
        text: What is written, in small letters.
        seconds: The time; NaN for a word or mark.
        unit: The smallest unit written; "" for a bare number.
    """

    text: str
    seconds: float = math.nan
    unit: Unit = ""

    @property
    def is_time(self) -> bool:
        return not math.isnan(self.seconds)


def answered_segments(answer: str) -> list[Segment]:
    """Read the stretches of time that an answer gives, valid or not.

    They are read from JSON, else from the final answer; where that is just the last line, the lines before it
    that have stretches, too, belong to it (a list).
    """
    text = without_thinking(answer)[-MAX_LENGTH:]
    final = final_answer(text)
    for part in (final, text):
        try:
            if found := segments_of(answer_json(part)):
                return found
        except (JsonError, ValueError):
            continue
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or final not in lines[-1]:
        return in_text(final)
    found = []
    for line in reversed(lines):
        here = in_text(line)
        if found and not here:
            break
        found[:0] = here
    return found or in_text("\n".join(lines[-_LAST_LINES:]))


def segments_of(value: object) -> list[Segment]:
    """Read the stretches of a value: a pair, a list of pairs, an object with start and end, or a text.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(value, str):
        return in_text(value)
    if isinstance(value, dict):
        for first, last in _KEYS:
            if first in value and last in value:
                return [Segment(seconds(value[first]), seconds(value[last]))]
        inner = [value[key] for key in _LISTS if key in value]
        if len(inner) == 1:
            return segments_of(inner[0])
    if isinstance(value, list | tuple):
        if len(value) == 2 and not any(isinstance(item, list | tuple | dict) for item in value):
            try:
                return [Segment(seconds(value[0]), seconds(value[1]))]
            except ValueError:
                pass  # two texts may be two stretches
        return [segment for item in value for segment in _of_item(item)]
    raise ValueError(f"{value!r:.80} is no stretch of time")


def seconds(value: object) -> float:
    """Return a time in seconds: a number, `8.5`, `8.5s`, `1 min 5 s`, `00:08` or `1:00:08.5`.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_SECONDS:
        return float(value)
    if isinstance(value, str) and len(value) <= 100:
        tokens = _tokens(value)
        if len(tokens) == 1 and tokens[0].is_time:
            return tokens[0].seconds
    raise ValueError(f"{value!r:.80} is no time such as 8.5 or '00:08'")


def in_text(text: str) -> list[Segment]:
    """Read the stretches in a text, in order."""
    tokens = _tokens(text)
    times = [index for index, token in enumerate(tokens) if token.is_time]
    found: list[Segment] = []
    position = 0
    while position + 1 < len(times):
        first, last = times[position], times[position + 1]
        if _joined(tokens, first, last):
            found.append(_segment(tokens[first], tokens[last]))
            position += 1
        position += 1
    return found


def _of_item(item: object) -> list[Segment]:
    """Read one item of a list, which must be stretches itself."""
    if isinstance(item, str | dict | list | tuple):
        return segments_of(item)
    raise ValueError(f"{item!r:.80} is no stretch of time")


def _tokens(text: str) -> list[_Token]:
    """Split a text; hours, minutes and seconds that follow each other are one time."""
    tokens: list[_Token] = []
    for token in _read(text):
        before = tokens[-1] if tokens else None
        if before and token.is_time and token.unit in _SMALLER.get(before.unit, ()):
            tokens[-1] = _Token(before.text, before.seconds + token.seconds, token.unit)
        else:
            tokens.append(token)
    return tokens


def _read(text: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(text):
        if found["clock"]:
            total = 0.0
            for part in found["clock"].split(":"):
                total = 60 * total + float(part)
            yield _Token(found["clock"], total, "clock")
        elif found["number"]:
            factor, unit = _UNITS[found["unit"].lower()] if found["unit"] else (1.0, "")
            yield _Token(found["number"], float(found["number"]) * factor, unit)
        else:
            yield _Token(found["mark"].lower())


def _joined(tokens: Sequence[_Token], first: int, last: int) -> bool:
    """Check whether two times, next to each other among the times, are the ends of one stretch."""
    if last - first > _NEAR:
        return False
    between = [token.text for token in tokens[first + 1 : last]]
    clause = [token.text for token in tokens[max(0, first - _BEFORE) : first]]
    ends = [index for index, text in enumerate(clause) if text in _CLAUSE_ENDS]
    before = set(clause[-5:])
    if _DENIED & set(clause[ends[-1] + 1 if ends else 0 :]):
        return False
    core = [text for text in between if text not in _FILL and text not in _OPEN and text not in _CLOSE]
    if any(text in _LAST for text in between):
        return bool(before & _FIRST)
    if len(core) == 1:
        alone = first == 0 and last == len(tokens) - 1
        brackets = first > 0 and tokens[first - 1].text in _OPEN
        brackets = brackets and last + 1 < len(tokens) and tokens[last + 1].text in _CLOSE
        return (
            core[0] in _BETWEEN
            or (core[0] in _AND and bool(before & _FROM))
            or (core[0] in _COMMAS and between == core and (alone or brackets))
        )
    return False


def _segment(first: _Token, last: _Token) -> Segment:
    """Make a stretch of two times; the first has the second's unit where it has none."""
    factor = {"m": 60.0, "h": 3600.0}.get(last.unit, 1.0) if not first.unit else 1.0
    return Segment(first.seconds * factor, last.seconds)
