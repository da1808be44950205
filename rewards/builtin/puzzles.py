"""Clocks, exact answers and sets: questions of perception and puzzles with a short answer."""

import re

from posttrain.files.strict_json import JsonError, parse_json
from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.builtin.counting import plain
from rewards.reading.answers import final_answer, normalise, readings, undressed
from rewards.reading.number_words import in_digits
from rewards.reading.references import references, unwrapped, values_of, written
from rewards.reading.wording import qualified, taken_back
from rewards.sdk import reward

MAX_LENGTH = 10_000
#: Times, after number words have become digits. Each yields hour, minute, second and half of the day.
_HALF = r"(?:\s{0,2}(?P<half>[ap])\.?\s?m\b\.?)?"
_MINUTE = r"(?: ?minutes?| ?mins?\b\.?)?"
#: What stands between the keys and values of `"hour": 10, "minute": 8`.
_IS, _NEXT = r"[\"']?\s?[:=]\s?[\"']?", r"[\"']?(?:[,;]| and)?\s{0,3}[\"']?"
_TIMES = [
    re.compile(
        rf"\bhours?{_IS}(?P<hour>\d{{1,2}}){_NEXT}minutes?{_IS}(?P<minute>\d{{1,2}})\b"
        rf"(?:{_NEXT}seconds?{_IS}(?P<second>\d{{1,2}})\b)?"
    ),
    re.compile(
        r"\b(?P<hour>\d{1,2}) ?(?:hours?|hrs?)\b\.?,?(?: and)? (?P<minute>\d{1,2}) ?(?:minutes?|mins?|m)\b\.?"
        rf"(?:,?(?: and)? (?P<second>\d{{1,2}}) ?(?:seconds?|secs?|s)\b)?{_HALF}"
    ),
    re.compile(r"(?<![\d:.])(?P<hour>[01]\d|2[0-4])(?P<minute>[0-5]\d) ?(?:hours|hrs)\b"),
    re.compile(
        r"(?<![\d:.])(?P<hour>\d{1,2})\s?(?:[:h]|uhr|heures?)\s?(?P<minute>\d{2})(?::(?P<second>\d{2}))?(?![\d:])"
        rf"{_HALF}"
    ),
    re.compile(rf"(?<![\d:.])(?P<hour>\d{{1,2}})\.(?P<minute>\d{{2}})(?![\d:]|\.\d){_HALF}"),
    re.compile(
        rf"\b(?:(?P<part>half|(?:a )?quarter|\d{{1,2}}){_MINUTE}) (?P<side>past|after|to|of|before|un?till?) "
        rf"(?P<hour>\d{{1,2}})\b(?! ?[:h]\d)(?: o'?clock)?{_HALF}"
    ),
    re.compile(rf"(?<![\d:])(?P<hour>\d{{1,2}}) ?(?:o'?clock{_HALF}|(?P<half_>[ap])\.?\s?m\b)"),
    re.compile(rf"(?<![\d:])(?P<hour>\d{{1,2}})(?: (?:oh |o )?|-)(?P<minute>\d{{1,2}})(?![\d:]){_HALF}"),
    re.compile(
        r"(?P<side>差)(?:(?P<part>[13]刻|\d{1,2})\s?分?钟?)(?:到|就)?\s?(?P<hour>\d{1,2})\s?[点點时時]"
    ),
    re.compile(r"(?P<hour>\d{1,2})\s?[点點时時](?P<side>差)(?P<part>[13]刻|\d{1,2})分?钟?"),
    re.compile(
        r"(?P<day>上午|早上|清晨|凌晨|中午|下午|傍晚|晚上|夜里)?(?P<hour>\d{1,2})\s?[点點时時시]\s?整?过?"
        r"(?:(?P<part>半|[13]刻)|(?P<minute>\d{1,2})\s?[分분]?)?(?!\d)"
    ),
]
_PARTS = {"half": 30, "quarter": 15, "a quarter": 15, "半": 30, "1刻": 15, "3刻": 45}
_AFTERNOON = ("中午", "下午", "傍晚", "晚上", "夜里")
_NOON = re.compile(r"\b(?:12 )?(?:noon|midday)\b|(?<![0-9])正午")
_MIDNIGHT = re.compile(r"\b(?:12 )?midnight\b|(?<![0-9])(?:午夜|子夜)(?![0-9])")
_COLON = re.compile(r"\{\s?:\s?\}|\\colon\b|\\[!,]|：")
_BULLET = re.compile(r"^[ \t]{0,20}(?:[-*•]|\d{1,4}[.)、])[ \t]{1,20}(\S[^\n]{0,2000})$", re.MULTILINE)
_SEPARATOR = re.compile(r"[,;\n，；、]")
#: What may stand before a list and around it.
_LEAD = re.compile(r"[^\n,;:]{1,80}?(?:\b(?:is|are|were|includes?|contains?)(?: the following)?\s?:?\s|:\s)")
_BRACKETED = re.compile(r"\\?[{(\[]\s?([^{}()\[\]:]{1,2000}?)\s?\\?[})\]]\.?")
_AND = re.compile(r"(?:^|\s)(?:and|&)\s|和|以及")


@reward("clock", written=written)
def clock(x: RewardInput, tolerance: int = 1, hours: int = 12) -> Score | None:
    """Score 1 if the time that the answer reads off a clock is right to the minute, or nearly, else 0.

    Formula: [min(|a − g|, D − |a − g|) ≤ tolerance] in minutes around a dial of D = 720 or 1440, so that
    11:59 and 12:01 are two minutes apart. a is the one time in the final answer: `10:08`, `10:08:30`,
    `10h08`, `10.08`, `3:05 p.m.`, `8 past 10`, `quarter to five`, `half past six`, `ten thirty`, `5 o'clock`,
    `noon`, `10 hours and 8 minutes`, `hour: 10, minute: 8`, `十点零八分`, `三点半`, `差五分十点`. An answer
    with two different times, or none, is wrong. On a 12-hour dial the half of the day does not count.

    Range: {0, 1}. Source: clock reading in the Qwen3-VL report, general RL; the tolerance is ours (assumed).

    Args:
        x: `ground_truth` is the time as a text in one of these forms, or a list of times of which each is
            right; None means that this does not apply.
        tolerance: Minutes that the answer may be off, from 0 to 59.
        hours: 12, or 24 for a clock that shows the half of the day.

    Raises:
        ValueError: If the ground truth is no time, or a parameter is out of range.
    """
    if hours not in (12, 24) or not 0 <= tolerance < 60:
        raise ValueError(
            f"hours={hours!r} must be 12 or 24, and tolerance={tolerance!r} from 0 to 59 minutes"
        )
    if x.ground_truth is None:
        return None
    texts = [value for value in values_of(x.ground_truth) if isinstance(value, str)]
    golds = [read_time(unwrapped(text), hours) for text in texts]
    if None in golds or not golds or len(golds) < len(values_of(x.ground_truth)):
        raise ValueError(f"ground_truth {x.ground_truth!r} is no time such as '10:08'; correct the dataset")
    answer = final_answer(without_thinking(x.answer)[-MAX_LENGTH:])
    time = read_time(answer, hours)
    if time is None:
        return Score(0.0, note=f"no single time in {answer[:80]!r}")
    apart = min(
        min((time - gold) % (hours * 60), (gold - time) % (hours * 60)) for gold in golds if gold is not None
    )
    return Score(float(apart <= tolerance), note=f"{apart:g} minutes off")


def read_time(text: str, hours: int) -> float | None:
    """Return the one time in a text in minutes on a dial of 12 or 24 hours; None for no time or several."""
    text = in_digits(_COLON.sub(lambda found: ":" if found[0][-1] in ":：n}" else "", plain(text)))
    text = _MIDNIGHT.sub("0 o'clock", _NOON.sub("12 o'clock", text.replace("’", "'")))
    times: set[float | None] = set()
    for pattern in _TIMES:
        # What one form has read is taken out, so that "10 past 10" is not also "10 10".
        times |= {_minutes(found, hours) for found in pattern.finditer(text)}
        if any(taken_back(text, *found.span()) for found in pattern.finditer(text)):
            return None
        text = pattern.sub(" | ", text)
    return times.pop() if len(times) == 1 else None


@reward("exact_match", written=written)
def exact_match(x: RewardInput, case: bool = True) -> Score | None:
    """Score 1 if the final answer is a reference answer character by character, else 0.

    Formula: max over references g of [a = g], runs of white space counting as one space, with a the final
    answer (the last `<answer>`, boxed, `Answer:` or last line) or the whole answer after the thinking. For
    codes, names and grids where `answer_accuracy` is too kind with punctuation.

    Range: {0, 1}. Source: exact match as in SQuAD, without its normalisation.

    Args:
        x: `ground_truth` is a text or number, or a list of them; None means that this does not apply.
        case: Whether upper and lower case differ.

    Raises:
        ValueError: If the ground truth is empty or of another type.
    """
    if x.ground_truth is None:
        return None
    answers = readings(x.answer)
    whole = _spaced(without_thinking(x.answer), case)
    candidates = {_spaced(undressed(text), case) for text in answers} | {whole} - {""}
    given = [str(value) for value in values_of(x.ground_truth)]
    right = any(_spaced(gold, case) in candidates for gold in map(undressed, references(x.ground_truth)))
    right = right or whole in [_spaced(text, case) for text in given]
    return Score(float(right), note="" if right else f"answered {answers[0][:80]!r}")


def _written_sets(ground_truth: object) -> list[str]:
    """Write a set as models do, its things between commas."""
    things = references(ground_truth)
    return [
        f"The answer is {', '.join(things)}",
        "<answer>" + "\n".join(f"- {thing}" for thing in things) + "</answer>",
    ]


@reward("set_match", written=_written_sets)
def set_match(x: RewardInput, exact: bool = False) -> Score | None:
    """Score how far the set of things that the answer lists is the reference set, in any order.

    Formula: the Jaccard index |A ∩ G| / |A ∪ G|, or [A = G] with `exact`. A is what the final answer lists:
    a JSON list, lines with bullets or numbers, or parts between commas, semicolons and a last "and". Things
    are compared without case, white space and surrounding punctuation; repeating one changes nothing,
    naming all that could be costs precision.

    Range: [0, 1]. Source: Jaccard 1901.

    Args:
        x: `ground_truth` is a list of texts or numbers, or a text that lists them as an answer does; None
            means that this does not apply.
        exact: Whether only the whole set scores.

    Raises:
        ValueError: If the ground truth is empty or of another type.
    """
    if x.ground_truth is None:
        return None
    gold = {normalise(reference) for reference in references(x.ground_truth)}
    if not isinstance(x.ground_truth, list | tuple) and isinstance(
        whole := values_of(x.ground_truth)[0], str
    ):
        gold = _listed(whole, set())
    if qualified(final_answer(x.answer[-MAX_LENGTH:])) and not any(map(qualified, gold)):
        return Score(0.0, note="the answer denies or bounds what it names")
    listed = _listed(without_thinking(x.answer)[-MAX_LENGTH:], gold)
    common = len(gold & listed)
    parts = {"precision": common / len(listed) if listed else 0.0, "recall": common / len(gold)}
    value = float(gold == listed) if exact else common / len(gold | listed)
    return Score(value, parts, f"{common} of {len(gold)} things, {len(listed)} listed")


def _minutes(found: re.Match[str], hours: int) -> float | None:
    """Return the minutes on the dial, or None where no clock shows such a time."""
    time = found.groupdict()
    hour, minute, second = int(time["hour"]), int(time.get("minute") or 0), int(time.get("second") or 0)
    if part := time.get("part"):
        minute = _PARTS[part] if part in _PARTS else int(part)
    if hour > 24 or minute > 59 or second > 59:
        return None
    half = time.get("half") or time.get("half_")
    if day := time.get("day"):
        half = "p" if day in _AFTERNOON else "a"
    if half:
        hour = hour % 12 + 12 * (half == "p")
    sign = 1 if time.get("side") in (None, "past", "after") else -1
    return (60 * hour + sign * minute + second / 60) % (60 * hours)


def _spaced(text: str, case: bool) -> str:
    text = " ".join(text.split())
    return text if case else text.casefold()


def _listed(answer: str, gold: set[str]) -> set[str]:
    """Return the normalised things that an answer lists; "and" parts two that are no one thing."""
    answer = answer.replace("```json", "").replace("```", "")
    final = undressed(final_answer(answer))
    # The last line of a list with bullets stands for the whole list.
    bullets = _BULLET.findall(answer if "\n" not in final and _BULLET.match(final) else final)
    things: set[str] = set()
    for item in bullets or _json_list(final) or _SEPARATOR.split(_bare_list(final)):
        thing = normalise(str(item))
        pieces = [thing] if thing in gold else [normalise(piece) for piece in _AND.split(thing)]
        things.update(piece for piece in pieces if piece)
    return things


def _bare_list(text: str) -> str:
    """Return a list without the words before it and the brackets around it: «The colours are {red, blue}»."""
    opening, _, rest = text.partition(",")
    if rest and "\n" not in opening and (lead := _LEAD.match(opening)):
        text = text[lead.end() :]
    bracketed = _BRACKETED.fullmatch(text)
    return bracketed[1].replace("'", "").replace('"', "") if bracketed else text


def _json_list(text: str) -> list[object]:
    """Return the items of a JSON list of texts and numbers, else nothing."""
    try:
        value = parse_json(text)
    except JsonError:
        return []
    return (
        value
        if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value)
        else []
    )
