"""The language penalties: what is told apart, what is left out first, and when they abstain."""

import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput, text_message
from rewards.builtin.language import language_match, language_mixing
from rewards.reading.languages import CODES, LANGUAGES, SCRIPTS, languages_of, prose

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ENGLISH = "There is a wooden table in the middle of the room, and a kettle stands on the stove."
CHINESE = "房间中央有一张木桌，窗户旁边的炉子上放着一个水壶。"


def match(prompt: str, answer: str, **columns: Any) -> float | None:
    score = language_match(RewardInput((text_message("user", prompt),), (), answer, columns=columns))
    return None if score is None else score.value


def mixing(answer: str, prompt: str = "", **params: Any) -> float:
    score = language_mixing(RewardInput((text_message("user", prompt),), (), answer), **params)
    assert score is not None
    return score.value


@given(TEXT, TEXT)
def test_any_text_is_judged(prompt: str, answer: str) -> None:
    assert match(prompt, answer) in (None, 0, -1)
    assert match(prompt, f"\n {answer}\t") == match(prompt, answer)
    assert -1 <= mixing(answer, prompt) <= 0
    assert mixing(f"\n {answer}\t", prompt) == mixing(answer, prompt)
    assert match(prompt, prompt) in (None, 0)


@pytest.mark.parametrize("answer", ["", " ", "42", "B", "x^2", "\u200b"])
def test_short_answers_abstain(answer: str) -> None:
    assert match(ENGLISH, answer) == 0
    assert mixing(answer) == 0


@pytest.mark.parametrize("prompt", ["", "?", "3 + 4 =", "$\\alpha$"])
def test_short_prompts_make_it_not_apply(prompt: str) -> None:
    assert match(prompt, ENGLISH) is None
    assert language_match(RewardInput((), (), ENGLISH)) is None


def test_the_column_overrides_the_prompt() -> None:
    assert match(ENGLISH, CHINESE) == -1
    assert match(ENGLISH, CHINESE, language="zh") == 0
    assert match(ENGLISH, ENGLISH, language="zh") == -1
    with pytest.raises(ValueError, match="language"):
        match(ENGLISH, ENGLISH, language="Chinese")


def test_the_last_user_turn_counts_and_earlier_ones_where_it_is_short() -> None:
    turns = (text_message("user", CHINESE), text_message("user", ENGLISH))
    score = language_match(RewardInput(turns, (), CHINESE))
    assert score is not None
    assert score.value == -1
    score = language_match(
        RewardInput((text_message("user", CHINESE), text_message("user", "?")), (), ENGLISH)
    )
    assert score is not None
    assert score.value == -1


@pytest.mark.parametrize(
    "text",
    [
        "```python\nfor word in words: print(word)\n```",
        "`print(words)` and $the \\text{sum}$".replace(" and ", " "),
        "\\[ x \\text{ where } y \\]",
        "https://example.org/some/long/path",
        "<tool_call>{}</tool_call>",
        "file_name_1 v2beta",
        '{"label": "a wooden table"}',
    ],
)
def test_what_is_no_prose(text: str) -> None:
    assert not any(c.isalpha() for c in prose(text))


def test_an_unclosed_mark_hides_nothing() -> None:
    assert "table" in prose("\\[ the wooden table")
    assert "table" in prose("$ the wooden table")
    assert "table" in prose("{ the wooden table")


def test_thinking_is_judged_where_asked() -> None:
    turn = text_message("assistant", f"<think>{CHINESE}\n{ENGLISH}</think>{ENGLISH}")
    x = RewardInput((), (turn,), ENGLISH)
    answer, everything = language_mixing(x), language_mixing(x, thinking=True)
    assert answer is not None
    assert everything is not None
    assert answer.value == 0
    assert everything.value < -0.2


def test_mixing_is_a_share() -> None:
    assert mixing(f"{ENGLISH}\n{CHINESE}") == pytest.approx(-0.5, abs=0.1)
    assert -0.15 < mixing(f"{ENGLISH} 因此 {ENGLISH}") < 0
    assert mixing(f"{ENGLISH} 因此 {ENGLISH}", prompt="因此 means therefore") == 0
    assert mixing(f"{ENGLISH} “因此”") == 0


def test_close_languages_are_not_told_apart() -> None:
    assert languages_of("Det står et trebord midt i rommet, og en kjele står på komfyren ved vinduet.") >= {
        "nb",
        "da",
    }


def test_the_tables_agree() -> None:
    assert LANGUAGES.keys() == SCRIPTS.keys()
    assert len(CODES) == sum(map(len, LANGUAGES.values()))


@pytest.mark.parametrize(
    "text",
    [
        *("\\[" * 500_000, "``` " * 250_001, "<tool_call>" * 90_000, "\\begin{" * 140_000, "a.b" * 330_000),
        *(
            "_" * 10**6,
            "(" * 10**6,
            '"' * 10**6,
            "汉a" * 500_000,
            f"{ENGLISH}\n" * 11_000,
            "ab cd " * 160_000,
        ),
    ],
    ids="display fence tool begin dots under brackets quotes mixed prose words".split(),
)
def test_a_megabyte_takes_linear_time(text: str) -> None:
    match(ENGLISH, CHINESE)  # loads the models
    start = time.process_time()
    match(ENGLISH, text)
    mixing(text)
    assert time.process_time() - start < 4  # quadratic time would be hours


def test_no_model_is_loaded_before_it_is_needed_and_they_are_small() -> None:
    code = f"""
import psutil, rewards.builtin.language as m
from rewards.reading.languages import languages_of
mb = lambda: psutil.Process().memory_info().rss / 2**20
start = mb()
languages_of({CHINESE!r})
script = mb()
languages_of({ENGLISH!r})
print(script - start, mb() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    by_script, with_models = map(float, done.stdout.split())
    assert by_script < 10
    assert with_models < 150
