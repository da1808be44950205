"""Which options does the final answer choose?"""

import re
import string
import unicodedata

from posttrain.types import RewardInput, Score
from rewards.reading.answers import final_answer, normalise
from rewards.reading.mathematics.forms import same
from rewards.reading.mathematics.sentences import formulas
from rewards.reading.mathematics.spelling import canonical
from rewards.sdk import reward

MAX_LENGTH = 1000
_DECORATION = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|boxed)\s*\{|[*$`{}\[\]\"']|\\[()]")
_CALLED = re.compile(
    r"^(?:the\s+)?(?:correct\s+)?(?:options?|choices?|answers?|选项?)\s*[:：]?\s*", re.IGNORECASE
)
_LETTER = r"\(?[A-Za-z]\)?\.?"
_AROUND_SIGNS = re.compile(r"\s*([(),;&.、])\s*")
#: «A», «(A)», «A, C», «A and C»; and «AC» in capitals.
_LETTERS = re.compile(rf"{_LETTER}(?:(?:,? ?and ?|[,、;&和 ]|(?<=[).])){_LETTER}){{0,25}}|[A-Z]{{2,26}}\.?")
_SEPARATOR = re.compile(r"\s*(?:[,;、&]|\band\b|和)\s*", re.IGNORECASE)
_AND = re.compile(r"\band\b", re.IGNORECASE)
#: «B. the red one»
_WITH_TEXT = re.compile(r"\(?([A-Za-z])\s*(?:\)\s*[.:、]?|[.:、])\s*(\S.*)", re.DOTALL)
_ANOTHER = re.compile(r"\([A-Z]\)|(?<![A-Za-z])[A-Z]\s*[.:)、]|(?:\b(?:and|or)\b|[和或])\s*\(?[A-Z]\b")


@reward("multiple_choice")
def multiple_choice(x: RewardInput, column: str = "choices") -> Score | None:
    """Score 1 if the final answer chooses exactly the right options, else 0.

    Formula: [chosen(a) = gold], with a the final answer (after the thinking; the last `<answer>`, boxed,
    `Answer:`, `故选` or last line) and chosen(a) the set of letters in it: `B`, `(B)`, `B. the red one`,
    `A, C`, `AC`. Where the options' texts are given, an option's text counts as its letter, and a letter
    with another option's text as nothing. «A or B» chooses nothing, and all letters are right only where
    all options are.

    Range: {0, 1}; an empty answer gets 0. Source: the exact match of multiple-choice benchmarks (MMMU,
    MathVista); reading texts as letters is ours (assumed).

    Args:
        x: `ground_truth` is a letter, or a list of letters where several options are right; None means
            that this does not apply.
        column: The column with the options: `{"A": "red", "B": "blue"}` or `["red", "blue"]`. It may be
            missing; then only letters count.

    Raises:
        ValueError: If the ground truth is no letter or list of letters, or the options are not texts, are
            not different, or lack a right one.
    """
    if x.ground_truth is None:
        return None
    gold = _gold(x.ground_truth)
    options = _options(x.columns.get(column), column)
    if options and not gold <= options.keys():
        raise ValueError(f"ground_truth {x.ground_truth!r} is not among the {column}; correct the dataset")
    answer = final_answer(x.answer)
    if not answer or len(answer) > MAX_LENGTH:
        return Score(0.0, note="no answer" if not answer else "the answer is too long to be a choice")
    chosen = next((found for text in formulas(answer) if (found := _chosen(text, options))), frozenset())
    return Score(float(chosen == gold), note=f"chose {', '.join(sorted(chosen)) or 'nothing'}")


def _gold(ground_truth: object) -> frozenset[str]:
    """Return the right letters, in upper case.

    Raises:
        ValueError: If they are not letters.
    """
    given = ground_truth if isinstance(ground_truth, list | tuple) else [ground_truth]
    letters = [v for v in given if isinstance(v, str) and re.fullmatch(r"\s*[A-Za-z]\s*", v)]
    if not letters or len(letters) < len(given):
        raise ValueError(f"ground_truth {ground_truth!r} is no letter or list of letters, as ['A', 'C'] is")
    return frozenset(letter.strip().upper() for letter in letters)


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
    options = {str(letter).upper(): _unlettered(str(letter), str(text)) for letter, text in value.items()}
    spellings = {_spelling(text) for text in options.values()}
    if len(spellings) < len(options) or "" in spellings:
        raise ValueError(f"{column} has an empty option, or one twice: {value!r}; correct the dataset")
    return options


def _unlettered(letter: str, text: str) -> str:
    """Return the option without its own letter before it, as in `B. blue`."""
    found = _WITH_TEXT.fullmatch(text.strip())
    return found.group(2) if found and found.group(1).upper() == letter.upper() else text


def _chosen(text: str, options: dict[str, str]) -> frozenset[str]:
    """Return the letters that a text chooses, by themselves or by the options' texts."""
    if letter := _by_text(text, options):
        return frozenset(letter)
    plain = unicodedata.normalize("NFKC", _DECORATION.sub(" ", text)).strip(" .。\n")
    plain = " ".join(_CALLED.sub("", plain).split())
    letters_only = _AROUND_SIGNS.sub(r"\1", plain)
    if _LETTERS.fullmatch(letters_only):
        letters = re.findall("[A-Za-z]", _AND.sub(" ", letters_only))
        return (
            frozenset(letter.upper() for letter in letters)
            if len(set(letters)) == len(letters)
            else frozenset()
        )
    parts = [part for part in _SEPARATOR.split(plain) if part]
    found = [_one(part, options) for part in parts] if options else []
    if len(found) > 1 and all(found):
        return frozenset(found)
    return frozenset(_one(plain, options))


def _one(text: str, options: dict[str, str]) -> str:
    """Return the one letter that a text chooses, or ""."""
    if letter := _by_text(text, options):
        return letter
    if re.fullmatch(_LETTER, _AROUND_SIGNS.sub(r"\1", text)):
        return text.strip("(). ").upper()
    found = _WITH_TEXT.fullmatch(text)
    if not found or _ANOTHER.search(found.group(2)):
        return ""
    letter, meant = found.group(1).upper(), _by_text(found.group(2), options)
    return letter if not options or meant == letter else ""


def _by_text(text: str, options: dict[str, str]) -> str:
    """Return the letter of the one option whose text this is, or that is the same mathematics, or ""."""
    spelling = _spelling(text)
    if found := [letter for letter, option in options.items() if _spelling(option) == spelling]:
        return found[0]
    if not re.search(r"\d", text):
        return ""
    written = canonical(text)
    found = [letter for letter, option in options.items() if same(canonical(option), written, 0.0)]
    return found[0] if len(found) == 1 else ""


def _spelling(text: str) -> str:
    """Spell an option's text in one way: as mathematics is written, in lower case, without an article."""
    return "".join(normalise(canonical(text)).replace("\\", "").split())
