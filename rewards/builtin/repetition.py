"""A penalty on text that repeats itself: phrases, lines, numbered loops and characters, in linear time."""

import re
from collections import Counter
from dataclasses import dataclass, field

from posttrain.types import RewardInput, Score
from rewards.builtin.length import written
from rewards.reading.units import WIDE
from rewards.sdk import reward

NGRAM = 10
#: Below this only phrases count that stand three times or more and are no mere interjections.
MIN_TOKENS = 10 * NGRAM
MIN_SHORT_TOKENS, MIN_SHORT_COUNT, MIN_SHORT_KINDS = 3 * NGRAM, 3, 4
#: Phrases in which running numbers count as one are longer, so that lists of short entries are no loops.
NUMBERED_NGRAM = 3 * NGRAM
#: A number runs if it grows by at most this in the same surroundings, or by the same step so many times.
SMALL_STEP, STEADY_STEPS = 1, 20
SURROUNDINGS = 8
#: Lines with fewer tokens («Yes.», «}», «---») and lines seen only twice are no loop.
MIN_LINE_TOKENS = 4
MIN_LINE_COUNT = 3
MAX_LENGTH = 200_000
#: Long runs are cut into pieces of 20, so that `aaaa…` is many tokens and not one.
_TOKEN = re.compile(rf"[{WIDE}]|[^\W{WIDE}]{{1,20}}|[^\w\s]{{1,20}}")
_MARKER = re.compile(r"\s*(?:[-*+•]|\d{1,6}[.):、]?)\s*")
#: A unit of letters, written without end.
_RUN = re.compile(r"([^\W\d_][^\d\n]{0,11}?)\1{24,}")


@reward("repetition", low=-1.0, high=0.0)
def repetition(x: RewardInput, tolerated: float = 0.25, full: float = 0.6) -> Score:
    """Score 0 for text that goes on, down to −1 for text that loops.

    Formula: −clip((max(p, q, l, c) − tolerated) / (full − tolerated), 0, 1), over all that the model wrote,
    thinking included. p = 1 − (different 10-grams) / (10-grams) of words and marks; Han and kana count by
    character. q is the same over 30-grams in which running numbers are one sign: those that change by 1, or
    for 20 times by the same step, between the same eight words and marks, some of them letters or brackets.
    l = share of the lines that repeat a line standing at least three times, without their list numbers,
    beyond its first. c = share of the characters in units of up to 12 that stand 25 times in a row.

    Texts of 30 to 100 words and marks have only p and c, with p = share of the 10-grams, beyond their first,
    that stand three times and have four different words; shorter ones only c, and so an empty answer gets
    0. Of more than 200,000 characters the first and last half of that many are read.

    Range: [−1, 0]. Source: seq-rep-n of Welleck et al. (arXiv 1908.04319); duplicate lines as in Gopher's
    repetition filter (arXiv 2112.11446, table A1). The rest is assumed: grounding lists and tables stay
    below the first limit of the slope, a loop that fills most of a text is beyond the second.

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
    tokens = _TOKEN.findall(text.casefold())
    long = len(tokens) >= MIN_TOKENS
    parts = {
        "phrases": 1 - _distinct(tokens, NGRAM) if long else _insistence(tokens),
        "numbered": 1 - _distinct(_without_running_numbers(tokens), NUMBERED_NGRAM) if long else 0.0,
        "lines": _repeated_lines(text) if long else 0.0,
        "characters": sum(len(run[0]) for run in _RUN.finditer(text)) / max(1, len(text)),
    }
    kind, share = max(parts.items(), key=lambda part: part[1])
    value = -min(1.0, max(0.0, (share - tolerated) / (full - tolerated)))
    return Score(value or 0.0, parts, f"{share:.0%} of the {kind} repeat")


def _distinct(tokens: list[str], size: int) -> float:
    """Return how many of the phrases of a size are different ones, as a share."""
    grams = list(zip(*(tokens[i:] for i in range(size)), strict=False))
    return len(set(grams)) / len(grams)


def _insistence(tokens: list[str]) -> float:
    """Return the share of a short text's phrases that say again what stands there three times."""
    if len(tokens) < MIN_SHORT_TOKENS:
        return 0.0
    counts = Counter(zip(*(tokens[i:] for i in range(NGRAM)), strict=False))
    again = (
        count - 1
        for gram, count in counts.items()
        if count >= MIN_SHORT_COUNT and len(set(gram)) >= MIN_SHORT_KINDS
    )
    return sum(again) / counts.total()


def _without_running_numbers(tokens: list[str]) -> list[str]:
    """Put one sign for each number that runs on from the number before in the same surroundings."""
    shapes = ["0" if token.isdecimal() else token for token in tokens]
    before: dict[tuple[str, ...], _Run] = {}
    for place, token in enumerate(tokens):
        if not token.isdecimal() or place < SURROUNDINGS:
            continue
        around = tuple(shapes[place - SURROUNDINGS : place])
        run = before.setdefault(around, _Run(named=any(c.isalpha() or c in "([{" for c in "".join(around))))
        run.add(place, int(token))
    running = {place for run in before.values() if run.named for place in run.running}
    return ["0" if place in running else token for place, token in enumerate(tokens)]


@dataclass
class _Run:
    """The numbers that stand in the same surroundings.

    Attributes:
        named: Whether these are more than separators: 1, 2, 3, … only counts.
        running: Places of the numbers that run.
        steady: Places of the last numbers in steps of the same size.
        last: The last number.
        step: How far it was from the one before.
    """

    named: bool
    running: set[int] = field(default_factory=set)
    steady: list[int] = field(default_factory=list)
    last: int | None = None
    step: int | None = None

    def add(self, place: int, number: int) -> None:
        """Take the next number."""
        step = None if self.last is None else number - self.last
        kept = self.steady if step == self.step else self.steady[-1:]
        self.steady = [*kept, place][-STEADY_STEPS - 1 :]
        if step and abs(step) <= SMALL_STEP:
            self.running.update(self.steady[-2:])
        elif step and len(self.steady) > STEADY_STEPS:
            self.running.update(self.steady)
        self.last, self.step = number, step


def _repeated_lines(text: str) -> float:
    """Return the share of the lines that repeat another, where that one stands at least three times."""
    lines = [_MARKER.sub("", line, count=1).strip().casefold() for line in text.splitlines() if line.strip()]
    counts = Counter(line for line in lines if len(_TOKEN.findall(line)) >= MIN_LINE_TOKENS)
    return sum(count - 1 for count in counts.values() if count >= MIN_LINE_COUNT) / max(1, len(lines))
