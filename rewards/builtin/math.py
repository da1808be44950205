"""Is the final answer mathematically equal to the reference?

The common answers, numbers with or without a unit, are read by `mathematics.quantities` and need no parser;
lists, intervals and matrices are compared part by part; formulas are parsed by math-verify and compared in
numbers at points drawn anew. Nothing is solved, so the time is bounded by the length of the texts; what
still passes the deadline of the worker pool is an error.
"""

import itertools
import re

from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.reading.answers import final_answer
from rewards.reading.mathematics.forms import same
from rewards.reading.mathematics.sentences import formulas
from rewards.reading.mathematics.spelling import canonical
from rewards.reading.references import references, written
from rewards.sdk import reward

MAX_LENGTH = 1000
MAX_DEPTH = 20
_PROSE = re.compile(r"\n|(?:(?<!\\)\b[A-Za-z]{2,}\b[^A-Za-z\\]+){7}[A-Za-z]{2}")


def _written(ground_truth: object) -> list[str]:
    """Write right answers to references that are no prose, which would only be equal as texts."""
    formal = [gold for gold in references(ground_truth) if not _PROSE.search(gold)]
    return written(formal) if formal else []


@reward("math", written=_written)
def math(x: RewardInput, tolerance: float = 0.0) -> Score | None:
    r"""Score 1 if the final answer equals a reference answer in mathematics, else 0.

    Formula: max over references g of [a ≡ g], with a the final answer (after the thinking; the last
    `<answer>`, boxed, `Answer:` or last line, and there the last formula or what its sentence ends with).
    a ≡ g where both are the same

    - number: exactly, to a relative 1.1e-6 where one is a decimal fraction, or to `tolerance`; units are
      converted, and may be left out; 50 % is 0.5, and also 50;
    - formula: equal wherever the variables are tried, of both signs, and both have real values: √(x²) is |x|
      and not x, ln xy is ln x + ln y; n, k, m, j and l may be whole numbers, as in (−1)ⁿ = cos nπ;
    - list or set of numbers in any order, tuple or matrix in its order, interval or inequality with the
      same ends, equation up to a factor (so x² = 0 is not x = 0), time, ratio term by term, or word.
      An answer may say whose value it gives (x = 5, x² + y² = 4 for 4). Of a reference only a lone name may
      be left out (y = 2x + 1 answered by 2x + 1): the circle x² + y² = 4 is not answered by 4.

    An answer that leaves an integral, limit or sum undone, states a false equation (4 = 5), or would be
    too costly to compute (towers of powers, thousands of digits) is wrong.

    Range: {0, 1}. Source: Qwen3-VL report, reasoning RL; math-verify 0.9 parses. Alone it also
    accepts 1/2^{99} for 1/2^{98}, 12:00 for 1:00 and 4 = 5 for 5.

    Args:
        x: `ground_truth` is LaTeX or a number, or a list of them; None means that this does not apply.
        tolerance: Relative difference allowed between numbers, as 0.01 for measurements.

    Raises:
        ValueError: If the ground truth is empty or of another type, or the tolerance is not in [0, 1).
    """
    if x.ground_truth is None:
        return None
    if not 0 <= tolerance < 1:
        raise ValueError(f"math: tolerance {tolerance!r} is a relative difference, at least 0 and below 1")
    golds = [canonical((formulas(gold) or [gold])[0]) for gold in references(x.ground_truth)]
    answer = final_answer(x.answer)
    whole = canonical(without_thinking(x.answer)) if len(x.answer) <= MAX_LENGTH else ""
    candidates = [canonical(text) for text in formulas(answer)] if answer else []
    if not any((whole, *candidates)):
        return Score(0.0, note="no answer")
    if any(gold in (whole, canonical(answer), *candidates) for gold in golds):
        return Score(1.0)
    candidates = [text for text in candidates if _readable(text)]
    if not candidates:
        return Score(0.0, note="the answer claims nothing, or is too long to compare")
    equal = any(same(gold, text, tolerance) for gold in golds for text in candidates)
    return Score(float(equal), note=f"answered {candidates[-1][:80]!r}")


def _readable(text: str) -> bool:
    """Check whether a text is there, and neither too long nor nested too deeply to be parsed."""
    depths = itertools.accumulate((c in "{([") - (c in "})]") for c in text)
    return 0 < len(text) <= MAX_LENGTH and max(depths) <= MAX_DEPTH
