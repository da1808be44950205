"""Tagged sections: values against the toolkits' own formulas, and what pays nothing."""

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards.format_rewards import think_format_reward

from posttrain.types import RewardInput, text_message
from rewards.builtin.format import tag_count, tag_format
from rewards.sdk import Reward

MARKS = ("<think>", "</think>", "<answer>", "</answer>")
#: Texts of whole and broken tags, white space and words, in any order.
PIECES = st.lists(st.sampled_from([*MARKS, "\n", " ", "a", "<b>", "<think", "think>", "\u3000"]), max_size=14)
#: Sections of the right form with a fault now and then.
SECTIONS = (
    st.tuples(
        *(
            st.sampled_from(choices)
            for choices in (["", "a", "\n"], ["<think>", ""], ["\n", "", "a\n", "\na\n"])
        )
    )
    .flatmap(
        lambda head: st.tuples(
            st.just("".join(head)),
            st.sampled_from(["</think>", "</think>\n", "</think> \n", "</think>a"]),
            st.sampled_from(["<answer>", "<answer>\n", "<answer>\nb\n", "<answer>b"]),
            st.sampled_from(["</answer>", "</answer>\n", "\n</answer>", "</answer>a", ""]),
        )
    )
    .map("".join)
)
TEXTS = PIECES.map("".join) | SECTIONS


def value(judged: Reward, text: str, **params: Any) -> float:
    score = judged(RewardInput((), (text_message("assistant", text),), text), **params)
    assert score is not None
    return score.value


def once(text: str, *marks: str) -> bool:
    return all(text.count(mark) == 1 for mark in marks)


@given(TEXTS)
def test_the_defaults_are_what_most_toolkits_ask_for(text: str) -> None:
    asked = re.fullmatch(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", text, re.DOTALL)
    assert value(tag_format, text) == float(bool(asked) and once(text, *MARKS))


@given(TEXTS)
def test_with_lines_it_is_open_r1s(text: str) -> None:
    asked = re.fullmatch(r"<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>", text.strip(), re.DOTALL)
    assert value(tag_format, text, lines=True) == float(bool(asked) and once(text, *MARKS))


@given(TEXTS)
def test_with_thinking_alone_it_is_trls(text: str) -> None:
    (asked,) = think_format_reward([[{"role": "assistant", "content": text.strip()}]])
    right = asked == 1.0 and once(text, "</think>")
    assert value(tag_format, text, tags=["think"], rest=True) == float(right)


@given(TEXTS)
def test_tags_are_counted_as_open_r1_counts_them(text: str) -> None:
    asked = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
    assert value(tag_count, text, lines=True) == sum(text.count(mark) == 1 for mark in asked) / 4
    assert value(tag_count, text) == sum(text.count(mark) == 1 for mark in MARKS) / 4


@given(TEXTS, st.text(" \n\t", max_size=3), st.text(" \n\t", max_size=3))
def test_white_space_around_the_turn_changes_nothing(text: str, before: str, after: str) -> None:
    assert value(tag_format, before + text + after) == value(tag_format, text)
    assert value(tag_count, before + text + after) == value(tag_count, text)


@given(
    st.lists(st.from_regex(r"[a-z]{1,5}[0-9]", fullmatch=True), min_size=1, max_size=5, unique=True), TEXTS
)
def test_any_names_in_their_order(tags: list[str], inside: str) -> None:
    text = "\n".join(f"<{tag}>{inside}</{tag}>" for tag in tags)
    assert value(tag_format, text, tags=tags) == 1.0
    assert value(tag_count, text, tags=tags) == 1.0
    assert value(tag_format, text, tags=[*tags, "other"]) == 0.0
    assert value(tag_format, f"{text} x", tags=tags) == 0.0
    assert value(tag_format, f"{text} x", tags=tags, rest=True) == 1.0
    if len(tags) > 1:
        assert value(tag_format, text, tags=tags[::-1]) == 0.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("left", "<think> stands 0 times"),
        ("<think></think><think></think><answer></answer>", "<think> stands 2 times"),
        ("x<think></think><answer></answer>", "text stands before <think>"),
        ("<think></think>x<answer></answer>", "text stands before <answer>"),
        ("<think></think><answer></answer>x", "text follows </answer>"),
        ("<answer></answer><think></think>", "text stands before <think>"),
        ("<think><answer></think></answer>", "the section answer does not stand in its place"),
        ("</think><think><answer></answer>", "the section think does not stand in its place"),
        ("<think></think><answer></answer>", "as asked for"),
    ],
)
def test_the_note_says_what_is_wrong(text: str, reason: str) -> None:
    score = tag_format(RewardInput((), (), text))
    assert score is not None
    assert score.note == reason


def test_the_last_turn_counts_with_its_thinking() -> None:
    turns = [
        text_message("assistant", "<think>a</think><tool_call>{}</tool_call>"),
        text_message("tool", "<answer>"),
    ]
    last = "<think>b</think>\n<answer>c</answer>"
    x = RewardInput((), (*turns, text_message("assistant", last)), "<answer>c</answer>")
    for judged in (tag_format, tag_count):
        score = judged(x)
        assert score is not None
        assert score.value == 1.0


@pytest.mark.parametrize(
    "tags", [[], "think", ["think", "think"], ["a b"], ["<think>"], [""], [3], ["a" * 99]]
)
@pytest.mark.parametrize("judged", [tag_format, tag_count])
def test_names_that_make_no_sense_are_refused(judged: Reward, tags: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{judged.name}: tags"):
        value(judged, "x", tags=tags)


@pytest.mark.parametrize(
    "text",
    ["<think>" * 300_000, "</think><answer>" * 150_000, "<" * 2_000_000],
    ids=["openings", "other tags", "brackets"],
)
def test_long_texts_take_linear_time(text: str) -> None:
    began = time.perf_counter()
    assert value(tag_format, text) == value(tag_count, text) == 0.0
    assert time.perf_counter() - began < 1
