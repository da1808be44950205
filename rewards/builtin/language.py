"""Penalties on answers in the wrong language, or in several at once."""

import re
from collections import Counter

from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.builtin.length import written
from rewards.reading.languages import (
    CODES,
    MIN_LETTERS,
    SCRIPTS,
    languages_of,
    languages_of_prose,
    prose,
    weights,
)
from rewards.sdk import reward

MAX_LENGTH = 100_000
#: A line with fewer letters is judged by its characters alone.
MIN_LINE_LETTERS = 60
#: What is quoted or added in brackets may be in any language: the text of a sign, a gloss, a name.
_CITED = re.compile(
    r"“[^“”\n]{1,300}”|\"[^\"\n]{1,300}\"|「[^「」\n]{1,300}」|『[^『』\n]{1,300}』|«[^«»\n]{1,300}»"
    r"|‘[^‘’\n]{1,300}’|《[^《》\n]{1,300}》|【[^【】\n]{1,300}】|\([^()\n]{1,300}\)|（[^（）\n]{1,300}）"
)
_LOWER = "a-z\u00df-\u00f6\u00f8-\u00ff"
#: Among other writing, single Latin words and capitalised ones are terms and names; phrases are not.
_FOREIGN = {
    "latin": re.compile(rf"(?<![{SCRIPTS['latin']}])[{_LOWER}]{{2,}}+(?:[ ,]++[{_LOWER}]++)++"),
    "greek": re.compile(f"[{SCRIPTS['greek']}]{{3,}}"),
}
_FOREIGN |= {script: re.compile(f"[{chars}]+") for script, chars in SCRIPTS.items() if script not in _FOREIGN}


@reward("language_match", low=-1.0, high=0.0)
def language_match(x: RewardInput) -> Score | None:
    """Score −1 if the answer is in another language than the prompt, else 0.

    Formula: −[P ∩ A = ∅ ∧ A ≠ ∅], with P and A the languages that the last user turn and the answer can be
    in (`rewards.reading.languages.languages_of`: by writing system, then by lingua's trigrams). Code, LaTeX,
    URLs and words with digits are left out first. An answer too short to tell (under 12 letters, or an empty
    one) gets 0; a prompt too short to tell means that this does not apply, for any of its answers. Where a
    prompt asks for another language than its own (translation, «answer in French»), the column must say so.

    Range: {−1, 0}. Source: Qwen3-VL report, reasoning RL (value assumed); lingua 2.1.

    Args:
        x: `columns["language"]`, where present, is the language wanted (ISO 639-1, as in "de").

    Raises:
        ValueError: If that column is no code of `rewards.reading.languages.CODES`.
    """
    wanted = _wanted(x)
    if not wanted:
        return None
    found = languages_of(without_thinking(x.answer))
    if not found or found & wanted:
        return Score(0.0)
    return Score(-1.0, note=f"the answer is in {_names(found)}, the prompt wants {_names(wanted)}")


@reward("language_mixing", low=-1.0, high=0.0)
def language_mixing(x: RewardInput, thinking: bool = False) -> Score:
    """Score minus the share of an answer that is in another language than the rest of it.

    Formula: −(letters in foreign lines and phrases) / letters. The text's own language is the one that most
    of its lines can be in. Foreign are lines of at least 60 letters that cannot be in it, and elsewhere
    characters of other writing systems. Excused are code, LaTeX and URLs, what is quoted or in brackets,
    what stands in the prompt, single Greek letters, and Latin names and single words among other writing
    ("GPU"). A Han, kana or hangul character counts as three letters. An answer too short to tell, or empty,
    gets 0. Of more than 100,000 characters the first and last half of that many are read.

    Range: [−1, 0]. Source: the language consistency reward of DeepSeek-R1 (arXiv 2501.12948), the share of
    words in the target language; the excuses are assumed.

    Args:
        x: The episode.
        thinking: Judge all that the model wrote, with its thinking, and not only the answer.
    """
    text = written(x) if thinking else without_thinking(x.answer)
    if len(text) > MAX_LENGTH:
        text = text[: MAX_LENGTH // 2] + "\n" + text[-MAX_LENGTH // 2 :]
    lines = [line.strip() for line in _CITED.sub(" ", prose(text)).splitlines() if line.strip()]
    found = Counter[str]()
    for line in lines:
        found.update(weights(line))
    if found.total() < MIN_LETTERS:
        return Score(0.0)
    prompt = "\n".join(message.text for message in x.prompt).casefold()
    foreign = _foreign_lines(lines, prompt)
    own = _own_scripts(found)
    letters = sum(
        sum(weights(line).values()) if index in foreign else _foreign_letters(line, own, prompt)
        for index, line in enumerate(lines)
    )
    share = letters / found.total()
    return Score(-share if share else 0.0, note=f"{share:.0%} in another language")


def _wanted(x: RewardInput) -> frozenset[str]:
    """Return the languages that an answer may be in; none where nothing says so."""
    code = x.columns.get("language")
    if code is not None:
        if code not in CODES:
            raise ValueError(f"the column language is {code!r}; it must be one of {', '.join(sorted(CODES))}")
        return frozenset([code])
    turns = [message.text for message in x.prompt if message.role == "user"]
    return (languages_of(turns[-1]) or languages_of("\n".join(turns))) if turns else frozenset()


def _names(codes: frozenset[str]) -> str:
    """Write up to three codes, for a note."""
    return "/".join(sorted(codes)[:3]) + ("/…" if len(codes) > 3 else "")


def _own_scripts(found: Counter[str]) -> set[str]:
    """Return the writing systems of the language that most letters belong to; Japanese has two."""
    joined = Counter(found)
    if joined["kana"] >= 0.05 * joined["han"] and joined["kana"]:
        joined["kana"] += joined.pop("han", 0)
    main = joined.most_common(1)[0][0]
    return {"han", "kana"} if main == "kana" else {main}


def _foreign_letters(line: str, own: set[str], prompt: str) -> int:
    """Count a line's letters in phrases of other writing systems that the prompt does not have."""
    runs = (run for script, pattern in _FOREIGN.items() if script not in own for run in pattern.findall(line))
    return sum(sum(weights(run).values()) for run in runs if run.casefold() not in prompt)


def _foreign_lines(lines: list[str], prompt: str) -> set[int]:
    """Find the indices of long lines that cannot be in the language that most text can be in."""
    possible = {
        i: languages_of_prose(lines[i]) for i in range(len(lines)) if len(lines[i]) * 3 >= MIN_LINE_LETTERS
    }
    letters = {i: sum(weights(lines[i]).values()) for i in possible}
    votes = Counter[str]()
    for i, codes in possible.items():
        votes.update(dict.fromkeys(codes, letters[i]))
    if not votes:
        return set()
    main = max(sorted(votes), key=votes.__getitem__)
    return {
        i
        for i, codes in possible.items()
        if codes
        and main not in codes
        and letters[i] >= MIN_LINE_LETTERS
        and lines[i].casefold() not in prompt
    }
