"""The reference answers of a sample, read as answers are; and how models write a right answer to them."""

import re
from collections.abc import Sequence
from functools import lru_cache

from rewards.reading.answers import announced, final_answer

#: The end of the sentence that a reference stood in.
_FULL_STOP = re.compile(r"(?<=[\w)\]}$])[.。]$")
#: Keys under which verl's and Search-R1's rows hold a reference beside other things.
_HELD_UNDER = ("ground_truth", "target")


def references(ground_truth: object) -> list[str]:
    r"""Return the reference answers as texts, each without its wrapping.

    A reference may be written as an answer is: `<answer>42</answer>`, `\boxed{42}`, a whole solution that
    ends in `#### 42`, `The answer is 42.`, `Answer: B`; what it announces is then the reference. verl's
    `{"ground_truth": …, "style": …}` holds one.

    Raises:
        ValueError: If there is none, or one is empty or neither text nor number.
    """
    values = values_of(ground_truth)
    for value in values:
        if not isinstance(value, str | int | float) or not str(value).strip():
            raise ValueError(f"ground_truth {value!r} is neither a text nor a number; correct the dataset")
    if not values:
        raise ValueError("ground_truth is an empty list; correct the dataset")
    return [unwrapped(str(value)) for value in values]


def values_of(ground_truth: object) -> Sequence[object]:
    """Return the alternatives of a ground truth as they are written; one that is no list is alone."""
    if isinstance(ground_truth, dict):
        held = [ground_truth[key] for key in _HELD_UNDER if key in ground_truth]
        ground_truth = held[0] if len(held) == 1 else ground_truth
    return ground_truth if isinstance(ground_truth, list | tuple) else [ground_truth]


@lru_cache(maxsize=4096)
def unwrapped(text: str) -> str:
    """Return what a text announces as the answer; the text itself where it announces none."""
    if not announced(text):
        return text.strip()
    answer = final_answer(text)
    return (_FULL_STOP.sub("", answer) if text.rstrip().endswith(answer) else answer) or text.strip()


def written(ground_truth: object) -> list[str]:
    """Write right answers to a ground truth as models do; none where no model would write such an answer.

    Raises:
        ValueError: As `references` does.
    """
    return [
        form % reference
        for reference in references(ground_truth)
        for form in ("The answer is %s.", "So it must be \\boxed{%s}", "<answer>%s</answer>")
    ]
