"""Which options does the final answer choose?"""

import re
import string

from posttrain.types import RewardInput, Score
from rewards.reading.answers import readings
from rewards.reading.choices import Options, chosen, duplicates
from rewards.reading.references import references, values_of, written
from rewards.sdk import reward

MAX_LENGTH = 1000
#: A letter with its text, beside which the text alone (in bold) says nothing more.
_LETTERED = re.compile(r"\([A-Z]\)|(?<![A-Za-z])[A-Z]\s?[.):]\s?\S")
_LETTER = re.compile("[A-Za-z]")
_OWN_LETTER = re.compile(r"\(?([A-Za-z])\s?(?:\)\s?[.:、]?|[.:、．：])\s*(\S.*)", re.DOTALL)


@reward("multiple_choice", written=written)
def multiple_choice(x: RewardInput, column: str = "choices") -> Score | None:
    """Score 1 if the final answer chooses exactly the right options, else 0.

    Formula: [chosen(a) = gold], with a the final answer (after the thinking; the last `<answer>`, boxed,
    `Answer:`, `故选` or last line) and chosen(a) the set of letters in it: `B`, `(B)`, `B. the red one`,
    `option B`, `A, C`, `AC`. A letter is a letter even where the options are letters themselves. Where the
    options' texts are given, an option's text, or its number in another spelling, counts as its letter, and
    a letter with another option's text as nothing. «A or B» and «not A» choose nothing, and all letters are
    right only where all options are.

    Range: {0, 1}; an empty answer gets 0. Source: the exact match of multiple-choice benchmarks (MMMU,
    MathVista); reading texts as letters is ours (assumed).

    Args:
        x: `ground_truth` is a letter, also written as an answer is (`(B)`, `B. red`, `Answer: B`), or a list
            of letters where several options are right; None means that this does not apply.
        column: The column with the options: `{"A": "red", "B": "blue"}` or `["red", "blue"]`. It may be
            missing; then only letters count.

    Raises:
        ValueError: If the ground truth is no letter or list of letters, or the options are not texts, are
            not different, or lack a right one.
    """
    if x.ground_truth is None:
        return None
    options = _options(x.columns.get(column), column)
    gold = _gold(x.ground_truth, options)
    if options and not gold <= options.keys():
        raise ValueError(f"ground_truth {x.ground_truth!r} is not among the {column}; correct the dataset")
    answers = [answer for answer in readings(x.answer) if len(answer) <= MAX_LENGTH]
    if not any(answers):
        return Score(
            0.0, note="the answer is too long to be a choice" if x.answer and not answers else "no answer"
        )
    if any(_LETTERED.search(answer) for answer in answers):
        answers = [answer for answer in answers if _LETTERED.search(answer) or len(answer) == 1]
    chose = next((found for answer in answers if (found := chosen(answer, options))), frozenset())
    return Score(float(chose == gold), note=f"chose {', '.join(sorted(chose)) or 'nothing'}")


def _gold(ground_truth: object, options: Options) -> frozenset[str]:
    """Return the right letters, in upper case.

    Raises:
        ValueError: If they are not letters, nor read as one each.
    """
    given = values_of(ground_truth)
    texts = references(ground_truth) if all(isinstance(value, str) for value in given) and given else []
    read = [text.upper() if _LETTER.fullmatch(text) else "".join(chosen(text, options)) for text in texts]
    letters = [letter for letter in read if len(letter) == 1]
    if not letters or len(letters) < len(given):
        raise ValueError(
            f"ground_truth {ground_truth!r} is no letter or list of letters, as ['A', 'C'] is, or no option"
        )
    return frozenset(letters)


def _options(value: object, column: str) -> dict[str, str]:
    """Return the options' texts by letter; none where there is no column.

    Raises:
        ValueError: If the column is not a list of up to 26 texts, or a mapping of letters to texts.
    """
    if value is None:
        return {}
    if isinstance(value, list | tuple) and 0 < len(value) <= 26:
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    if not isinstance(value, dict) or not all(
        re.fullmatch("[A-Za-z]", str(k)) and isinstance(v, str | int | float) for k, v in value.items()
    ):
        raise ValueError(
            f"{column} must be a list of up to 26 texts or a mapping of letters to texts: {value!r}"
        )
    options = {str(letter).upper(): str(text).strip() for letter, text in value.items()}
    if all(_own(letter, text) for letter, text in options.items()):
        options = {letter: _own(letter, text) for letter, text in options.items()}
    if duplicates(options) or "" in options.values():
        raise ValueError(f"{column} has an empty option, or one twice: {value!r}; correct the dataset")
    return options


def _own(letter: str, text: str) -> str:
    """Return the option without its own letter before it, as in `B. blue`; "" where it has none."""
    found = _OWN_LETTER.fullmatch(text)
    return found[2] if found and found[1].upper() == letter else ""
