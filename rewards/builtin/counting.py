"""Is the number of things right? By the number given, or by the boxes or points drawn."""

import re
from collections.abc import Sequence
from typing import Literal, get_args

from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.builtin.grounding import repeats
from rewards.reading.answers import final_answer
from rewards.reading.references import unwrapped, values_of, written
from rewards.reading.regions import read_regions
from rewards.reading.text import LOWERED, RAISED, plain_width
from rewards.reading.wording import taken_back
from rewards.sdk import reward

How = Literal["number", "boxes", "points"]

MAX_LENGTH = 10_000
#: An answer with more numbers than this states none.
_MOST_NUMBERS = 50
_UNITS: Sequence[str] = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen"
).split()
_TENS: Sequence[str] = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_CHINESE: dict[str, int] = {**{c: i for i, c in enumerate("零一二三四五六七八九")}, "〇": 0, "两": 2, "兩": 2}

_ENGLISH_NUMBER = re.compile(
    rf"\b(?:({'|'.join(_TENS)})(?:[- ]({'|'.join(_UNITS[1:10])}))?|({'|'.join(_UNITS)}))\b"
)
_CHINESE_NUMBER = re.compile(
    r"一(?=共|起|些|样|定|下|直)|([一二两兩三四五六七八九])?(十)([一二三四五六七八九])?|([零〇一二两兩三四五六七八九])"
)
_NUMBER = re.compile(
    r"(?<![a-z0-9_])(?<!\d\.)[-−]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?:\.\d{1,18})?"
    rf"(?![a-z0-9_{RAISED}{LOWERED}]|\.\d)"
)
_MORE_DIGITS = re.compile(r"\s{0,3}(?:hundred|thousand|million|dozen|score|百|千|万|亿)")
_REMARK = re.compile(r"\((?! ?or\b)[^()]{0,200}\)")
_NONE = re.compile(r"\b(?:no|none|nothing)\b|没有")


@reward("counting", written=written)
def counting(x: RewardInput, how: How = "number") -> Score | None:
    """Score 1 if the answer counts as many things as there are, else 0.

    Formula: [n(a) = n]. By number, n(a) is the one number that the final answer states, in digits or in
    English or Chinese words up to 99, "no" and "none" for 0. An answer with several numbers ("3 or 4", "3
    red and 2 blue ones") or a bound ("more than 3") states none; of `3 + 2 = 5` only the last side counts,
    and of "5 (3 + 2)" only what stands outside the parentheses. By boxes or points, n(a) is how many are
    written in any family's format; the score is exactly 0 where one of them is written twice (boxes:
    IoU ≥ 0.9) or is no box or point. Where they must be on the objects, take `grounding` or `pointing`.

    Range: {0, 1}. Source: PixMo-Count and CountBench score equal numbers; the readings are ours (assumed).

    Args:
        x: `ground_truth` is the whole number of things, as a number or as an answer states it, or a list of
            numbers of which each is right; None means that this does not apply.
        how: `number`, `boxes` or `points`.

    Raises:
        ValueError: If the ground truth is no whole number from 0 up, or `how` is none of the three.
    """
    if how not in get_args(How):
        raise ValueError(f"how={how!r} is none of {', '.join(get_args(How))}")
    if x.ground_truth is None:
        return None
    wanted = [_whole_number(value) for value in values_of(x.ground_truth) or [x.ground_truth]]
    if not without_thinking(x.answer):
        return Score(0.0, note="no answer")
    if how == "number":
        stated = stated_number(final_answer(without_thinking(x.answer)[-MAX_LENGTH:]))
        return Score(float(stated in wanted), note=f"states {stated}, there are {_shown(wanted)}")
    kind = "box" if how == "boxes" else "point"
    regions = [region for region in read_regions(x.answer, "norm_1000") if region.kind == kind]
    note = f"{len(regions)} {how}, there are {_shown(wanted)}"
    if len(regions) not in wanted or not all(region.box for region in regions):
        return Score(0.0, note=note)
    return Score(float(not repeats(regions)), note=note)


def stated_number(text: str) -> float | None:
    """Return the one number that a short text states, or None for no number, several, or a bound."""
    text = plain(text).rpartition("=")[2]
    values = _values(_REMARK.sub(" ", text)) or _values(text)
    return values.pop() if len(values) == 1 else None


def plain(text: str) -> str:
    """Return the text in half-width lower case."""
    return plain_width(text).casefold()


def in_digits(text: str) -> str:
    """Write a plain text's English and Chinese numbers up to 99 in digits: "twenty-one" becomes "21"."""
    return _CHINESE_NUMBER.sub(_chinese_value, _ENGLISH_NUMBER.sub(_english_value, text))


def _values(text: str) -> set[float | None]:
    """Return the different numbers in a text, None for one that only bounds or cannot be read.

    Words count only where there are no digits ("One sees 5 dogs"), "no" only where there is neither.
    """
    for candidate in (text, in_digits(text)):
        numbers = list(_NUMBER.finditer(candidate))
        if len(numbers) > _MOST_NUMBERS:
            return {None}
        if found := {_value(candidate, number) for number in numbers}:
            return found
    return {0.0} if _NONE.search(text) else set()


def _value(text: str, number: re.Match[str]) -> float | None:
    after = text[number.end() : number.end() + 20]
    if _MORE_DIGITS.match(after) or taken_back(text, *number.span()):
        return None
    return float(number[0].replace(",", "").replace("−", "-"))


def _shown(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _english_value(number: re.Match[str]) -> str:
    tens, unit, small = number.groups()
    if small:
        return str(_UNITS.index(small))
    return str(20 + 10 * _TENS.index(tens) + (_UNITS.index(unit) if unit else 0))


def _chinese_value(number: re.Match[str]) -> str:
    tens, ten, unit, digit = number.groups()
    if digit:
        return str(_CHINESE[digit])
    if not ten:  # 一 in a word such as 一共, "in all"
        return number[0]
    return str(10 * _CHINESE.get(tens, 1) + _CHINESE.get(unit, 0))


def _whole_number(ground_truth: object) -> int:
    if isinstance(ground_truth, int) and not isinstance(ground_truth, bool) and ground_truth >= 0:
        return ground_truth
    if isinstance(ground_truth, float) and ground_truth.is_integer() and ground_truth >= 0:
        return int(ground_truth)
    stated = stated_number(unwrapped(ground_truth)) if isinstance(ground_truth, str) else None
    if stated is not None and stated >= 0 and stated.is_integer():
        return int(stated)
    raise ValueError(f"ground_truth {ground_truth!r} is no whole number from 0 up; correct the dataset")
