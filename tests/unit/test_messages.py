"""What a turn says outside of its thinking, for whoever reads it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.curation.rows import answer_input, answer_of
from posttrain.messages import without_thinking
from posttrain.rollout.worker import reward_input
from posttrain.types import Sample, Trajectory, text_message
from rewards.builtin.answer_accuracy import answer_accuracy
from tools_env.hermes import ParsedCall, parse_calls

CALL = '<tool_call>{"name": "zoom", "arguments": {}}</tool_call>'
OTHER = '<tool_call>{"name": "other", "arguments": {}}</tool_call>'
SAMPLE = Sample("s", (text_message("user", "Which?"),), ground_truth="K")


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        ("", ""),
        ("K", "K"),
        (" \nK\n", "K"),
        ("<think>a</think>K", "K"),
        ("<think>\na\n</think>\n\nK", "K"),
        ("a</think>K", "K"),  # the template has opened the thinking in the prompt
        ("<think>a</think>K<think>b</think>L", "L"),
        ("K<think>a</think>L", "L"),
        ("<think>a</think>", ""),
        ("K<think>a</think>", ""),
        ("<think>a", ""),
        ("K<think>a", "K"),
        ("<think>a</think>K<think>b", "K"),
        ("a<think>b<think>c</think>K", "K"),
        ("<think>a</think>b</think>K", "K"),
        ("<think><think>a</think>K</think>", ""),
        ("</think>", ""),
        ("<THINK>a</THINK>K", "<THINK>a</THINK>K"),  # a token of the model, not a word
    ],
)
def test_one_reading_of_a_turn(turn: str, answer: str) -> None:
    assert without_thinking(turn) == answer
    assert answer_of(turn) == answer
    assert answer_input(SAMPLE, turn, truncated=False).answer == answer
    seen = reward_input(Trajectory("s", "t", 0, 0, response=[text_message("assistant", turn)]), SAMPLE)
    assert seen.answer == answer
    score = answer_accuracy(seen)
    assert score is not None
    assert score.value == float(answer == "K")


@pytest.mark.parametrize(
    ("turn", "names"),
    [
        (CALL, ["zoom"]),
        (f"<think>a</think>{CALL}{OTHER}", ["zoom", "other"]),
        (f"a</think>{CALL}", ["zoom"]),
        (f"{CALL}</think>K", []),
        (f"<think>{CALL}", []),
        (f"K<think>{CALL}", []),
        (f"<think>a</think>{CALL}<think>{OTHER}", ["zoom"]),
        (f"<think>a</think>K<think>{CALL}</think>L", []),
        (f"<think>a</think>{CALL}<think>b</think>{OTHER}", ["other"]),
    ],
)
def test_a_call_within_the_thinking_is_not_run(turn: str, names: list[str]) -> None:
    assert [call.name for call in parse_calls(turn)] == names
    assert parse_calls(turn) == [ParsedCall(name) for name in names]


@given(st.lists(st.sampled_from(["<think>", "</think>", "K", " ", "\n"]), max_size=12))
def test_reading_twice_changes_nothing(pieces: list[str]) -> None:
    once = without_thinking("".join(pieces))
    assert without_thinking(once) == once
    assert "<think>" not in once
    assert "</think>" not in once
