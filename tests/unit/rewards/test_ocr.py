"""OCR rewards: the rates themselves, what counts as the same text, and hostile text."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.ocr import anls, cer, edit_distance, wer
from rewards.reading.text import MAX_LENGTH, clean, safe_html, transcript
from rewards.sdk import Reward

ALL = [edit_distance, cer, wer, anls]
texts = st.text(st.sampled_from("abAB 1.,é中文\n\u200b\u0301ﬁ"), max_size=12)
plain = st.text("abc ", max_size=12).map(lambda text: " ".join(text.split()))


def score(reward: Reward, gold: Any, answer: str, **params: Any) -> float:
    result = reward(RewardInput((), (), answer, ground_truth=gold), **params)
    assert result is not None
    return result.value


def levenshtein(a: Sequence[str], b: Sequence[str]) -> int:
    """The textbook dynamic programme."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


@settings(max_examples=300, deadline=None)
@given(plain, plain)
def test_rates_equal_those_of_the_textbook(gold: str, answer: str) -> None:
    assume(gold)
    edits = levenshtein(gold, answer)
    similarity = 1 - edits / max(len(gold), len(answer))
    words = gold.split()
    assert score(cer, gold, answer) == pytest.approx(max(0, 1 - edits / len(gold)))
    assert score(wer, gold, answer) == pytest.approx(
        max(0, 1 - levenshtein(words, answer.split()) / len(words))
    )
    assert score(edit_distance, gold, answer) == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("reward", "gold", "answer", "value"),
    [
        (cer, "kitten", "sitting", 0.5),
        (edit_distance, "kitten", "sitting", 4 / 7),
        (wer, "the cat sat", "the dog sat", 2 / 3),
        (anls, "kitten", "sitting", 4 / 7),
        (anls, "ab", "xb", 0.0),
        (anls, "Tokyo", "The answer is tokyo.", 1),
        (anls, "Tokyo", "tokyo.", 5 / 6),
        (cer, "ab", "abcdef", 0.0),
        (cer, "ab", "xxxxxxxxxx", 0.0),
    ],
)
def test_values_worked_out_by_hand(reward: Reward, gold: str, answer: str, value: float) -> None:
    assert score(reward, gold, answer) == pytest.approx(value)


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.name)
def test_nothing_to_read(reward: Reward) -> None:
    assert score(reward, "", "") == 1.0
    assert score(reward, "", " \n\u200b") == 1.0
    assert score(reward, "", "text") == 0.0
    assert score(reward, "text", "") == 0.0
    assert score(reward, ["", "text"], "") == 1.0


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ALL), texts, texts, st.sampled_from(["", " ", "\n\t", "\u3000"]))
def test_properties(reward: Reward, gold: str, answer: str, space: str) -> None:
    assume(clean(gold))
    value = score(reward, gold, answer)
    assert 0 <= value <= 1
    assert score(reward, gold, space + answer + space) == value
    assert score(reward, gold, gold) == 1.0
    assert score(reward, gold, "") == 0.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("ABC１２３", "ＡＢＣ123"),
        ("office", "o\ufb03ce"),
        ("café", "cafe\u0301"),
        ("passenger", "pas\u00adsen\u200bger\ufeff"),
        ("שלום", "\u202bשלום\u202c"),
        ("第一行第二行", "第一行\n第二行"),
        ("a b", "a\u00a0\u2003b"),
        ("print(1)", "```python\nprint(1)\n```"),
        ("EXIT", "<think>a door</think>\nEXIT"),
        ("EXIT", "It says <answer>EXIT</answer>"),
    ],
)
def test_the_same_text(gold: str, answer: str) -> None:
    assert score(cer, gold, answer) == 1.0


def test_what_differs() -> None:
    assert score(edit_distance, "OPEN", "open") == 0.0
    assert score(edit_distance, "OPEN", "open", ignore_case=True) == 1.0
    assert score(cer, "1,5", "1.5") < 1
    assert clean("한국 사람") == "한국 사람"


HOSTILE = {
    "flood": "a" * 1_000_000,
    "lengthened by NFKC": "\ufdfa" * MAX_LENGTH,
    "quadratic marks": "a" + "\u0301\u0323" * 40_000,
    "open tags": "<answer>" * 12_000,
    "closing tags": "</answer>" * 11_000,
    "NUL": "\0" * MAX_LENGTH,
    "half a surrogate pair": "\ud800" * MAX_LENGTH,
    "words": "a " * 50_000,
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.name)
def test_hostile_text_earns_little_and_costs_little(reward: Reward, answer: str) -> None:
    begun = time.thread_time()
    assert 0 <= score(reward, "a sign of ten words or so, to be read", answer) < 0.1
    assert time.thread_time() - begun < 1


def test_a_dataset_at_fault() -> None:
    assert cer(RewardInput((), (), "x")) is None
    for broken in ([], " \u200b", None.__class__, True, ["a", {}], "a" * (MAX_LENGTH + 1)):
        with pytest.raises(ValueError, match="ground_truth"):
            score(cer, broken, "x")
    with pytest.raises(ValueError, match="threshold"):
        score(anls, "a", "a", threshold=0)


def test_transcript() -> None:
    assert transcript("<answer>a</answer> then <answer> b </answer>") == "b"
    assert transcript("b</answer>") == "b</answer>"
    assert transcript("```\na\nb") == "a\nb"


def test_safe_html_keeps_only_complete_tags() -> None:
    assert (
        safe_html("<!DOCTYPE html><b>1 < 2</b><!-- x --><STYLE>p</STYLE><a <") == "<b>1 &lt; 2</b>&lt;a &lt;"
    )
