"""The accuracies of benchmarks with short answers, by their names: VQA, MMMU, ChartQA, VSI-Bench.

Each follows its benchmark's published evaluation, but reads the final answer
(`rewards.reading.answers.final_answer`), so that what is considered on the way does not count.
"""

import re
from collections.abc import Sequence

from posttrain.types import RewardInput, Score
from rewards.builtin.counting import plain, stated_number
from rewards.reading.answers import normalise
from rewards.reading.number_words import in_digits
from rewards.reading.references import references, written
from rewards.reading.short_answers import (
    final_and_whole,
    mmmu_candidates,
    mmmu_spelling,
    number,
    vqa_spelling,
)
from rewards.reading.wording import denied, one_of_several, qualified, taken_back
from rewards.sdk import reward

#: With fewer answers, none of them is given often enough for full marks when one is left out.
LEAST_ANSWERS = 4
#: An open answer that states more numbers than this, or more text than this beside the gold, lists guesses.
MOST_NUMBERS = 3
MOST_TEXT = 200
_NUMERALS = re.compile(r"\d[\d.,]*")
_CURRENCY = "$€£¥"
_PERCENT = re.compile(r"\d\s{0,2}(?:%|percent|per cent)")


def _written_by_most(ground_truth: object) -> list[str] | None:
    """Write the answer that most people gave; None where even that earns no full marks."""
    people = _people(ground_truth)
    spelled = [vqa_spelling(answer) for answer in people]
    most = max(spelled, key=spelled.count)
    return [people[spelled.index(most)]] if spelled.count(most) >= LEAST_ANSWERS else None


@reward("vqa_accuracy", written=_written_by_most)
def vqa_accuracy(x: RewardInput) -> Score | None:
    """Score how many of the people asked gave the same answer (soft accuracy of VQA v2).

    Formula: with m of n answers equal to a, the mean over the subsets that leave one answer out of
    min(1, matches / 3): (m · min(1, (m − 1) / 3) + (n − m) · min(1, m / 3)) / n. So of ten answers, 4 equal
    ones give 1, 3 give 0.9, 2 give 0.6, 1 gives 0.3. Both sides are spelled as in the official evaluation:
    small letters, without articles and punctuation, number words up to ten as digits, contractions with
    their apostrophes. a is the final answer or the whole answer, whichever scores more.

    Range: [0, 1]. Source: Goyal et al. 2017, VQA v2 (arXiv 1612.00837), and its `vqaEval.py`; there people's
    answers are only spelled alike where they differ, here always.

    Args:
        x: `ground_truth` is the list of people's answers, ten in VQA v2, OK-VQA and TextVQA, at least four;
            each a text or number, or an object whose `answer` is one. None means that this does not apply.

    Raises:
        ValueError: If the ground truth is another thing.
    """
    if x.ground_truth is None:
        return None
    given = [vqa_spelling(answer) for answer in _people(x.ground_truth)]
    best, read = max((_soft(given, vqa_spelling(text)), text) for text in final_and_whole(x.answer))
    return Score(best, note=f"answered {read[:80]!r}")


@reward("mmmu_open", written=written)
def mmmu_open(x: RewardInput) -> Score | None:
    """Score 1 if the answer to an open question is right by MMMU's rules, else 0.

    Formula: the final answer's candidates are what follows "is", "so", "answer", "=" and the like in its
    sentences, and the numbers in that; right is a number equal to a reference's after rounding both to two
    decimals, or a text that contains a reference's (one letter only beside a space), in small letters. What
    is denied, bounded («at least 5») or one of several («4 or 5», «4, 5») is no answer. A final answer with
    more than three different numbers, or 200 characters more than the longest reference, lists guesses and
    scores 0. For multiple choice take `multiple_choice`.

    Range: {0, 1}. Source: Yue et al. 2024, MMMU (arXiv 2311.16502), `parse_open_response` and `eval_open` of
    its `eval_utils.py`; that guesses do not count is ours (assumed), for the published rules accept a list
    of every number.

    Args:
        x: `ground_truth` is a text or number, or a list of them, any of which is right; None means that this
            does not apply.

    Raises:
        ValueError: If the ground truth is empty or of another type.
    """
    if x.ground_truth is None:
        return None
    golds = references(x.ground_truth)
    answer = final_and_whole(x.answer)[0]
    if not answer or (denied(answer) and not any(map(denied, golds))):
        return Score(0.0, note=f"denied: {answer[:80]!r}" if answer else "no answer")
    if one_of_several(answer) and not any(map(one_of_several, golds)):
        return Score(0.0, note=f"several answers: {answer[:80]!r}")
    numbers = len({found.rstrip(".,") for found in _NUMERALS.findall(answer)})
    if numbers > MOST_NUMBERS or len(answer) > MOST_TEXT + max(map(len, golds)):
        return Score(0.0, note=f"{len(answer)} characters with {numbers} numbers are no single answer")
    candidates = mmmu_candidates(_without_bounds(answer, golds))
    right = any(_same_open(gold, it) for text in golds for gold in mmmu_spelling(text) for it in candidates)
    return Score(float(right), note=f"answered {answer[:80]!r}")


@reward("relaxed_accuracy", written=written)
def relaxed_accuracy(x: RewardInput, tolerance: float = 0.05) -> Score | None:
    """Score 1 if the answer is a reference answer, numbers up to 5 %, else 0 (relaxed accuracy of ChartQA).

    Formula: max over references g of [|a − g| ≤ tolerance · |g|] where both are numbers, else [a = g] without
    case, white space and surrounding punctuation. 12 % is 0.12, so it is not 12. Where g = 0, a must be 0.
    a is the final answer, or as a text the whole answer; `$1,200`, `1200.` and `about 1200 dollars` are 1200.
    Mind that years are numbers too: 2010 is within 5 % of 1950, so take `answer_accuracy` for them.

    Range: {0, 1}. Source: Masry et al. 2022, ChartQA (arXiv 2203.10244), as `relaxed_correctness` of
    pix2struct; separators, currencies and numbers within a sentence are ours (assumed).

    Args:
        x: `ground_truth` is a text or number, or a list of them; None means that this does not apply.
        tolerance: The relative difference allowed, at least 0 and below 1.

    Raises:
        ValueError: If the ground truth is empty or of another type, or the tolerance out of range.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"relaxed_accuracy: tolerance {tolerance!r} must be at least 0 and below 1")
    if x.ground_truth is None:
        return None
    found = final_and_whole(x.answer)
    right = any(
        normalise(gold) in map(normalise, found) or _near(gold, found[0], tolerance)
        for gold in references(x.ground_truth)
    )
    return Score(float(right), note=f"answered {found[0][:80]!r}" if found[0] else "no answer")


@reward("mean_relative_accuracy", written=written)
def mean_relative_accuracy(x: RewardInput) -> Score | None:
    """Score how close a number is to the reference: the share of ten tolerances that it keeps to.

    Formula: (1/10) Σ over θ in {0.50, 0.55, …, 0.95} of [|a − g| / |g| ≤ 1 − θ], max over references g. Where
    g = 0, [a = 0]. a is the one number that the final answer states; units are not converted.

    Range: [0, 1], in tenths. Source: Yang et al. 2024, VSI-Bench (arXiv 2412.14171), and its published code.

    Args:
        x: `ground_truth` is a number, as a number or text, or a list of them; None means that this does not
            apply.

    Raises:
        ValueError: If a reference is no number.
    """
    if x.ground_truth is None:
        return None
    golds = [(text, _number_in(text)) for text in references(x.ground_truth)]
    for text, gold in golds:
        if gold is None:
            raise ValueError(f"ground_truth {text[:80]!r} is no number such as 3.5; correct the dataset")
    value = _number_in(final_and_whole(x.answer)[0])
    if value is None:
        return Score(0.0, note="the answer states no single number")
    kept = max(_tolerances_kept(value, gold) for _, gold in golds if gold is not None)
    return Score(kept / 10, note=f"stated {value:g}")


def _number_in(text: str) -> float | None:
    """Return the number that a text is, or the one that it states; percentages are hundredths.

    Thousands separators, a currency and a full stop at the end do not matter.
    """
    plain = text.strip().replace("−", "-").replace("\\%", "%").replace("\\$", "$").removesuffix(".")
    value = number(plain.removesuffix("%").rstrip().lstrip(_CURRENCY))
    if value is None:
        stated = stated_number(plain)
        percent = _PERCENT.search(plain)
        return stated if stated is None or not percent else stated / 100
    return value / 100 if plain.endswith("%") else value


def _without_bounds(answer: str, golds: Sequence[str]) -> str:
    """Return the answer without the numbers and the references' texts that its words bound or take back."""
    names = "|".join(re.escape(gold.strip().lower()) for gold in golds if gold.strip())
    found = list(re.finditer(rf"{names}|{_NUMERALS.pattern}", answer, re.IGNORECASE))[: 10 * MOST_NUMBERS]
    for place in reversed(found):
        if not any(map(qualified, golds)) and taken_back(answer, *place.span()):
            answer = answer[: place.start()] + "…" + answer[place.end() :]
    return answer


def _people(ground_truth: object) -> list[str]:
    """Return the answers that people gave."""
    values = ground_truth if isinstance(ground_truth, list | tuple) else []
    if len(values) < LEAST_ANSWERS:
        raise ValueError(
            f"ground_truth {ground_truth!r:.80} is no list of at least {LEAST_ANSWERS} people's answers;"
            ' give ["red", "red", "dark red", …], or use answer_accuracy for one right answer'
        )
    return references([value.get("answer") if isinstance(value, dict) else value for value in values])


def _soft(given: Sequence[str], answer: str) -> float:
    """Compute the mean over the subsets that leave one answer out."""
    n, m = len(given), given.count(answer) if answer else 0
    return (m * min(1.0, (m - 1) / 3) + (n - m) * min(1.0, m / 3)) / n


def _same_open(gold: float | str, candidate: float | str) -> bool:
    """Compare as MMMU's `eval_open` does."""
    if isinstance(gold, str) and isinstance(candidate, str):
        return gold in candidate
    return gold == candidate


def _near(gold: str, text: str, tolerance: float) -> bool:
    """Compare two texts as numbers, if both are."""
    if not any(c.isdigit() for c in in_digits(plain(gold))):
        return False  # «no» is no number here
    wanted, value = _number_in(gold), _number_in(text)
    return wanted is not None and value is not None and abs(value - wanted) <= tolerance * abs(wanted)


def _tolerances_kept(value: float, gold: float) -> int:
    if gold == 0:
        return 10 * (value == 0)
    return sum(abs(value - gold) / abs(gold) <= 1 - (50 + 5 * step) / 100 for step in range(10))
