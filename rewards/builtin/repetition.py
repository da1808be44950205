"""A penalty on text that repeats itself: phrases and lines, in linear time."""

import re
from collections import Counter

from posttrain.types import RewardInput, Score
from rewards.builtin.length import written
from rewards.reading.units import WIDE
from rewards.sdk import reward

NGRAM = 10
#: Shorter texts do not loop, they insist.
MIN_TOKENS = 10 * NGRAM
#: Lines with fewer tokens («Yes.», «}», «---») and lines seen only twice are no loop.
MIN_LINE_TOKENS = 4
MIN_LINE_COUNT = 3
MAX_LENGTH = 200_000
#: Long runs are cut into pieces of 20, so that `aaaa…` is many tokens and not one.
_TOKEN = re.compile(rf"[{WIDE}]|[^\W{WIDE}]{{1,20}}|[^\w\s]{{1,20}}")
_MARKER = re.compile(r"\s*(?:[-*+•]|\d{1,6}[.):、]?)\s*")


@reward("repetition", low=-1.0, high=0.0)
def repetition(x: RewardInput, tolerated: float = 0.25, full: float = 0.6) -> Score:
    """Score 0 for text that goes on, down to −1 for text that loops.

    Formula: −clip((max(p, l) − tolerated) / (full − tolerated), 0, 1). p = 1 − (different 10-grams) /
    (10-grams) over the words and marks of all that the model wrote, thinking included; Han and kana count
    by character. l = share of the lines that repeat a line standing at least three times, without their
    list numbers, beyond its first. Texts below 100 words and marks, and so an empty answer, get 0. Of more
    than 200,000 characters the first and last half of that many are read.

    Range: [−1, 0]. Source: seq-rep-n of Welleck et al. (arXiv 1908.04319); duplicate lines as in Gopher's
    repetition filter (arXiv 2112.11446, table A1). The slope between the two limits is assumed: grounding
    lists and tables stay below the first, a loop that fills most of a text is beyond the second.

    Args:
        x: The episode.
        tolerated: Share up to which there is no penalty.
        full: Share from which on it is −1.

    Raises:
        ValueError: If not 0 ≤ tolerated < full ≤ 1.
    """
    if not 0 <= tolerated < full <= 1:
        raise ValueError(f"repetition: 0 ≤ tolerated < full ≤ 1 must hold, got {tolerated} and {full}")
    text = written(x)
    if len(text) > MAX_LENGTH:
        text = text[: MAX_LENGTH // 2] + "\n" + text[-MAX_LENGTH // 2 :]
    phrases, lines = _repeated_phrases(text), _repeated_lines(text)
    share = max(phrases, lines)
    value = -min(1.0, max(0.0, (share - tolerated) / (full - tolerated)))
    note = f"{phrases:.0%} of the phrases and {lines:.0%} of the lines repeat"
    return Score(value or 0.0, {"phrases": phrases, "lines": lines}, note)


def _repeated_phrases(text: str) -> float:
    """Return 1 − distinct-10, or 0 for a short text."""
    tokens = _TOKEN.findall(text.casefold())
    if len(tokens) < MIN_TOKENS:
        return 0.0
    grams = list(zip(*(tokens[i:] for i in range(NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams)


def _repeated_lines(text: str) -> float:
    """Return the share of the lines that repeat another, where that one stands at least three times."""
    lines = [_MARKER.sub("", line, count=1).strip().casefold() for line in text.splitlines() if line.strip()]
    if len(_TOKEN.findall(text)) < MIN_TOKENS:
        return 0.0
    counts = Counter(line for line in lines if len(_TOKEN.findall(line)) >= MIN_LINE_TOKENS)
    return sum(count - 1 for count in counts.values() if count >= MIN_LINE_COUNT) / len(lines)
