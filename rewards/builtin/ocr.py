"""How close is a transcription to the reference? Edit distances over characters and words.

All four rewards read the same ground truth: a text or a number, or a list of alternatives of which the
closest counts. "" says that there is nothing to read; then an empty answer is right and any text is wrong.
Both sides are cleaned first (`rewards.reading.text.clean`): no full-width forms or invisible characters.
"""

from collections.abc import Callable

from rapidfuzz.distance import Levenshtein

from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.reading.answers import readings, undressed
from rewards.reading.references import unwrapped, values_of, written
from rewards.reading.text import MAX_LENGTH, clean, transcript
from rewards.reading.wording import qualified
from rewards.sdk import reward

#: Answers to questions are short; of a longer text only the end is searched for the answer.
_MAX_ANSWER = 10_000


@reward("edit_distance")
def edit_distance(x: RewardInput, ignore_case: bool = False) -> Score | None:
    """Score the similarity of the transcription to the reference by normalised edit distance.

    Formula: max over references g of 1 − lev(g, a) / max(|g|, |a|), over characters; 1 where both are
    empty. a is the last `<answer>…</answer>`, else the whole answer, without a code fence around it.

    Range: [0, 1]. Source: normalised edit distance as in OmniDocBench (arXiv 2412.07626); rapidfuzz.

    Args:
        x: `ground_truth` as in this module's docstring; None means that this does not apply.
        ignore_case: Whether capitals equal small letters.

    Raises:
        ValueError: If a reference is blank but not "", longer than 100,000 characters, or of another type.
    """
    return _closest(x, [transcript(x.answer)], Levenshtein.normalized_similarity, ignore_case)


@reward("cer")
def cer(x: RewardInput, ignore_case: bool = False) -> Score | None:
    """Score the share of the characters read correctly: 1 minus the character error rate.

    Formula: max over references g of 1 − min(1, lev(g, a) / |g|), over characters. For an empty g: [a = ""].

    Range: [0, 1]. Source: character error rate, with a as in `edit_distance`; rapidfuzz.

    Args:
        x: `ground_truth` as in this module's docstring; None means that this does not apply.
        ignore_case: Whether capitals equal small letters.

    Raises:
        ValueError: As `edit_distance` does.
    """
    return _closest(x, [transcript(x.answer)], _one_minus_error_rate, ignore_case)


@reward("wer")
def wer(x: RewardInput, ignore_case: bool = False) -> Score | None:
    """Score the share of the words read correctly: 1 minus the word error rate.

    Formula: as `cer`, over words between white space. Chinese, Japanese and Thai have no such words; use
    `cer` for them.

    Range: [0, 1]. Source: word error rate, with a as in `edit_distance`; rapidfuzz.

    Args:
        x: `ground_truth` as in this module's docstring; None means that this does not apply.
        ignore_case: Whether capitals equal small letters.

    Raises:
        ValueError: As `edit_distance` does.
    """
    return _closest(
        x, [transcript(x.answer)], lambda g, a: _one_minus_error_rate(g.split(), a.split()), ignore_case
    )


@reward("anls", written=lambda gold: [""] if gold == "" else written(gold))
def anls(x: RewardInput, threshold: float = 0.5) -> Score | None:
    """Score the similarity of the final answer to the closest reference, 0 where it is too far off (ANLS).

    Formula: max over references g of s if 1 − s < threshold, else 0, with
    s = 1 − lev(g, a) / max(|g|, |a|) over characters, capitals equal to small letters. a is the final
    answer (`rewards.reading.answers.readings`) or the whole answer, whichever is closer; one that denies or
    bounds what it names («not Mozart») is no closer to a g that does not.

    Range: [0, 1]. Source: Biten et al. 2019, Scene Text Visual Question Answering (arXiv 1905.13648);
    the choice of a is ours (assumed).

    Args:
        x: `ground_truth` as in this module's docstring; None means that this does not apply.
        threshold: Normalised distance from which an answer is wrong, above 0 and at most 1.

    Raises:
        ValueError: As `edit_distance` does, or if the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold!r}; it must be above 0 and at most 1")

    def similarity(reference: str, answer: str) -> float:
        value = Levenshtein.normalized_similarity(reference, answer)
        if 1 - value >= threshold or (value < 1 and qualified(answer) and not qualified(reference)):
            return 0.0
        return value

    whole = without_thinking(x.answer)
    answers = [*readings(whole[-_MAX_ANSWER:]), whole]
    return _closest(x, answers, similarity, ignore_case=True, unwrap=lambda text: undressed(unwrapped(text)))


def _closest(
    x: RewardInput,
    answers: list[str],
    similarity: Callable[[str, str], float],
    ignore_case: bool,
    unwrap: Callable[[str], str] = transcript,
) -> Score | None:
    """Find the best similarity over references, without their wrapping, and readings of the answer."""
    if x.ground_truth is None:
        return None
    references = _references(x.ground_truth, unwrap)
    cleaned = [clean(answer) for answer in answers if len(answer) <= MAX_LENGTH]
    cleaned = [answer for answer in cleaned if len(answer) <= MAX_LENGTH]  # NFKC can lengthen 18 times
    if not cleaned:
        return Score(0.0, note=f"the answer has more than {MAX_LENGTH:,} characters")
    if ignore_case:
        references, cleaned = [r.casefold() for r in references], [a.casefold() for a in cleaned]
    best, read = max((similarity(g, a), a) for g in references for a in cleaned)
    return Score(best, note=f"read {read[:80]!r}" if read else "nothing read")


def _references(ground_truth: object, unwrap: Callable[[str], str]) -> list[str]:
    """Return the reference texts, cleaned; only "" itself is empty.

    Raises:
        ValueError: If there is none, or one is blank, too long, or neither text nor number.
    """
    values = values_of(ground_truth)
    if not values:
        raise ValueError("ground_truth is an empty list; correct the dataset")
    texts = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(
                f"ground_truth {value!r:.80} is neither a text nor a number; correct the dataset"
            )
        if len(str(value)) > MAX_LENGTH:
            raise ValueError(f"ground_truth has more than {MAX_LENGTH:,} characters; split the page")
        texts.append(clean(unwrap(str(value))))
        if value != "" and not texts[-1]:
            raise ValueError(f'ground_truth {value!r:.80} is blank; write "" where there is nothing to read')
    return texts


def _one_minus_error_rate(reference: str | list[str], answer: str | list[str]) -> float:
    if not reference:
        return float(not answer)
    return 1 - min(1.0, Levenshtein.distance(reference, answer) / len(reference))
