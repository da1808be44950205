"""Is the final answer the reference answer? By rule, no judge."""

import re

from posttrain.types import RewardInput, Score
from rewards.reading.answers import final_answer, normalise
from rewards.sdk import reward

_CHOICE = re.compile(r"\(?([A-Za-z])\)?\s*(?:[.:)、]|$)")


@reward("answer_accuracy")
def answer_accuracy(x: RewardInput) -> Score | None:
    """Score 1 if the final answer equals a reference answer, else 0.

    Formula: max over references g of [n(a) = n(g)], with a the final answer (after the thinking; the last
    `<answer>`, boxed, `Answer:` or last line), and n the normalisation of `rewards.reading.answers`. Where g
    is one letter, `(B)`, `B.` and `B) a red marker` are the choice B.

    Range: {0, 1}. Source: Qwen3-VL report, tool rewards, "answer accuracy" (there by a judge; the
    rule is ours and holds where answers are short).

    Args:
        x: `ground_truth` is a text or number, or a list of them; None means that this does not apply.

    Raises:
        ValueError: If the ground truth is empty or of another type, which is a fault of the dataset.
    """
    if x.ground_truth is None:
        return None
    answer = final_answer(x.answer)
    for reference in references(x.ground_truth):
        if normalise(reference) in (normalise(answer), normalise(x.answer)):
            return Score(1.0)
        if len(reference) == 1 and reference.isalpha() and _choice(answer) == reference.casefold():
            return Score(1.0)
    return Score(0.0, note=f"answered {answer[:80]!r}" if answer else "no answer")


def references(ground_truth: object) -> list[str]:
    """Return the reference answers as texts.

    Raises:
        ValueError: If there is none, or one is empty or neither text nor number.
    """
    values = ground_truth if isinstance(ground_truth, list | tuple) else [ground_truth]
    for value in values:
        if not isinstance(value, str | int | float) or not str(value).strip():
            raise ValueError(f"ground_truth {value!r} is neither a text nor a number; correct the dataset")
    if not values:
        raise ValueError("ground_truth is an empty list; correct the dataset")
    return [str(value).strip() for value in values]


def _choice(answer: str) -> str:
    """Return the letter that an answer chooses, in lower case, or ""."""
    found = _CHOICE.match(answer.strip(" *\"'"))
    return found.group(1).casefold() if found else ""
