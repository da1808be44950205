"""Is the final answer the reference answer? By rule, no judge."""

import re

from posttrain.types import RewardInput, Score
from rewards.reading.answers import normalise, readings
from rewards.reading.references import references, values_of, written
from rewards.sdk import reward

_CHOICE = re.compile(r"\(?([A-Za-z])\)?\s*(?:[.:)、]|$)")


@reward("answer_accuracy", written=written)
def answer_accuracy(x: RewardInput) -> Score | None:
    """Score 1 if the final answer equals a reference answer, else 0.

    Formula: max over references g of [n(a) = n(g)], with a the final answer (after the thinking; the last
    `<answer>`, boxed, `Answer:` or last line, with or without remarks on it), and n the normalisation of
    `rewards.reading.answers`. g may be wrapped as an answer is. Where g is one letter, `(B)`, `B.` and
    `B) a red marker` are the choice B.

    Range: {0, 1}. Source: Qwen3-VL report, tool rewards, "answer accuracy" (there by a judge; the
    rule is ours and holds where answers are short).

    Args:
        x: `ground_truth` is a text or number, or a list of them; None means that this does not apply.

    Raises:
        ValueError: If the ground truth is empty or of another type, which is a fault of the dataset.
    """
    if x.ground_truth is None:
        return None
    answers = readings(x.answer)
    spelled = {normalise(answer) for answer in answers} - {""}
    whole = normalise(x.answer)
    for value, reference in zip(values_of(x.ground_truth), references(x.ground_truth), strict=True):
        if normalise(reference) in spelled or (
            whole and whole in (normalise(reference), normalise(str(value)))
        ):
            return Score(1.0)
        if len(reference) == 1 and reference.isalpha() and _choice(answers[0]) == reference.casefold():
            return Score(1.0)
    return Score(0.0, note=f"answered {answers[0][:80]!r}" if answers[0] else "no answer")


def _choice(answer: str) -> str:
    """Return the letter that an answer chooses, in lower case, or ""."""
    found = _CHOICE.match(answer.strip(" *\"'"))
    return found.group(1).casefold() if found else ""
