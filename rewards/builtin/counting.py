"""Is the number of things right? By the number given, or by the boxes or points drawn."""

import re
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.builtin.grounding import iou_and_giou
from rewards.reading.answers import final_answer
from rewards.reading.number_words import in_digits
from rewards.reading.references import unwrapped, values_of, written
from rewards.reading.regions import read_regions
from rewards.reading.text import LOWERED, RAISED, plain_width
from rewards.reading.wording import denied, taken_back
from rewards.sdk import reward

How = Literal["number", "boxes", "points"]

MAX_LENGTH = 10_000
#: Boxes that overlap this much show one thing, as in non-maximum suppression, and points less far apart
#: than this, in thousandths of the image or in pixels (assumed).
SAME_BOX_IOU, SAME_POINT = 0.7, 5.0
#: An answer with more numbers than this states none.
_MOST_NUMBERS = 50
_NUMBER = re.compile(
    r"(?<![a-z0-9_])(?<!\d\.)[-−]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?:\.\d{1,18})?"
    rf"(?![a-z0-9_{RAISED}{LOWERED}]|\.\d)"
)
_MORE_DIGITS = re.compile(r"\s{0,3}(?:hundred|thousand|million|dozen|score|百|千|万|亿)")
_SCALE = re.compile(rf"\d{_MORE_DIGITS.pattern}")
_TOTAL_BEFORE = re.compile(
    r"(?:\b(?:total(?: number)?|sum)(?: of| is|:)*|\b(?:altogether|in all),? "
    r"|\b(?:in (?:total|all)|altogether|overall),? (?:there (?:are|were|is)|it has"
    r"|(?:i|we) (?:can )?(?:see|count|have))(?: exactly)?)\s?$"
    r"|(?:[一总]?共[计有是]*|合计|总数[是为]?)[\s:]{0,3}$"
)
_TOTAL_AFTER = re.compile(
    r"(?:\s[a-z]{1,20}){0,3}\s(?:in (?:total|all)|altogether|total|overall|combined)\b|\s*个?\s*(?:总共|合计)"
)
_REMARK = re.compile(r"\((?! ?or\b)[^()]{0,200}\)")
_NONE = re.compile(r"\b(?:no(?! (?:idea|doubt|clue|way|longer|wonder|matter))|none|nothing)\b|没有")
#: What makes another number of the one after it.
_MULTIPLIED = re.compile(
    r"\b(?:half|twice|double|triple|thrice|thirds?|quarters?|fourths?|times|multiples?|square|cube|root)"
    r"(?: (?:of|as (?:many|much) as))?(?: the)?\s?$"
)


@reward("counting", written=written)
def counting(x: RewardInput, how: How = "number") -> Score | None:
    """Score 1 if the answer counts as many things as there are, else 0.

    Formula: [n(a) = n]. By number, n(a) is the one number that the final answer states, in digits or in
    English or Chinese words, "no" and "none" for 0. An answer with several numbers ("3 or 4", "3 red and 2
    blue ones") or a bound ("more than 3") states none, unless it says which one is the total ("5 in all"); of
    `3 + 2 = 5` only the last side counts, and of "5 (3 + 2)" only what stands outside the parentheses. By
    boxes or points, n(a) is how many the answer has in any family's format; the score is exactly 0 where two
    of them show one thing, whatever their labels (boxes: IoU ≥ 0.7, points: less than 5 units apart), or one
    is no box or point. Where they must be on the objects, take `grounding` or `pointing`.

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
    places = [(box.x1, box.y1, box.x2, box.y2) for region in regions if (box := region.box)]
    if len(regions) not in wanted or len(places) < len(regions):
        return Score(0.0, note=note)
    return Score(float(not _one_twice(np.array(places).reshape(-1, 4), how)), note=note)


def _one_twice(places: NDArray[np.float64], how: How) -> bool:
    """Check whether two of the places, [N, 4], show one thing."""
    if how == "boxes":
        same = iou_and_giou(places, places)[0] >= SAME_BOX_IOU
    else:
        same = np.linalg.norm(places[:, None, :2] - places[None, :, :2], axis=-1) < SAME_POINT
    return bool(np.tril(same, k=-1).any())


def stated_number(text: str) -> float | None:
    """Return the one number that a short text states, or None for no number, several, or a bound."""
    text = plain(text).rpartition("=")[2]
    values = _values(_REMARK.sub(" ", text)) or _values(text)
    return values.pop() if len(values) == 1 else None


def plain(text: str) -> str:
    """Return the text in half-width lower case."""
    return plain_width(text).casefold()


def _values(text: str) -> set[float | None]:
    """Return the different numbers in a text, None for one that only bounds or cannot be read.

    Words count only where there are no digits ("One sees 5 dogs"), "no" only where there is neither.
    """
    for candidate in (in_digits(text),) if _SCALE.search(text) else (text, in_digits(text)):
        numbers = list(_NUMBER.finditer(candidate))
        if len(numbers) > _MOST_NUMBERS:
            return {None}
        totals = [number for number in numbers if _is_total(candidate, number)]
        if found := {_value(candidate, number) for number in totals or numbers}:
            return found
    none = _NONE.search(text)
    return {0.0} if none and not denied(text[: none.start()]) else set()


def _is_total(text: str, number: re.Match[str]) -> bool:
    before = text[max(0, number.start() - 30) : number.start()]
    return bool(_TOTAL_BEFORE.search(before) or _TOTAL_AFTER.match(text, number.end()))


def _value(text: str, number: re.Match[str]) -> float | None:
    after = text[number.end() : number.end() + 20]
    before = text[max(0, number.start() - 30) : number.start()]
    if _MORE_DIGITS.match(after) or _MULTIPLIED.search(before) or taken_back(text, *number.span()):
        return None
    return float(number[0].replace(",", "").replace("−", "-"))


def _shown(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _whole_number(ground_truth: object) -> int:
    if isinstance(ground_truth, int) and not isinstance(ground_truth, bool) and ground_truth >= 0:
        return ground_truth
    if isinstance(ground_truth, float) and ground_truth.is_integer() and ground_truth >= 0:
        return int(ground_truth)
    stated = stated_number(unwrapped(ground_truth)) if isinstance(ground_truth, str) else None
    if stated is not None and stated >= 0 and stated.is_integer():
        return int(stated)
    raise ValueError(f"ground_truth {ground_truth!r} is no whole number from 0 up; correct the dataset")
