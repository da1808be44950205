"""Is every look read rightly? By rule, against episodes that were written by hand."""

from typing import Any

import pytest

from posttrain.types import Block, ImageRef, Message, RewardInput, Score, ToolCall, text_message
from rewards.builtin.turn_readings import turn_readings

LETTERS = list("AHKLOTXZ")
READINGS = {"red": "K", "blue": "T"}
CROP = Message("tool", (Block("image", image=ImageRef("/crop.png")), Block("text", text="Image 1")))


def call(label: Any, images: int = 1) -> ToolCall:
    return ToolCall("image_zoom_in_tool", {"label": label}, images > 0, images=images)


def asks(said: str, label: str) -> str:
    return f'{said}\n<tool_call>\n{{"name": "zoom", "arguments": {{"label": "{label} KTA"}}}}\n</tool_call>'


def score(turns: list[str | Message], calls: list[ToolCall], readings: Any = READINGS, **params: Any) -> Any:
    response = tuple(text_message("assistant", turn) if isinstance(turn, str) else turn for turn in turns)
    columns = {} if readings is None else {"readings": readings}
    found = turn_readings(RewardInput((), response, "", tool_calls=tuple(calls), columns=columns), **params)
    return found.value if isinstance(found, Score) else found


@pytest.mark.parametrize(
    ("turns", "labels", "value"),
    [
        (["K"], [], 1.0),
        ([asks("", "red"), CROP, "K"], ["red"], 1.0),
        ([asks("", "red"), CROP, "T"], ["red"], 0.0),
        ([asks("", "red"), CROP, asks("K", "blue"), CROP, "KT"], ["red", "blue"], 1.0),
        ([asks("", "red"), CROP, asks("<think>K</think>", "blue"), CROP, "KA"], ["red", "blue"], 0.5),
        ([asks("", "red"), CROP, asks("AHKLOTXZ", "blue"), CROP, "KT"], ["red", "blue"], 0.5),  # all of them
        ([asks("", "red"), CROP, asks("KT", "blue"), CROP, "KT"], ["red", "blue"], 0.5),  # read before seen
        ([asks("", "red"), CROP, asks("", "blue"), CROP, "KT"], ["red", "blue"], 0.5),  # only in the call
        ([asks("", "red"), CROP, asks("K", "red"), CROP, "K"], ["red", "red"], 0.5),  # the same twice
        ([asks("", "green"), CROP, "K"], ["green"], 0.0),  # not asked for
        ([asks("", "red"), CROP], ["red"], 0.0),  # cut off
        ([asks("", "red"), CROP, "<tool_call>K"], ["red"], 0.0),  # a call that never ends
    ],
)
def test_a_look_counts_where_the_next_turn_reads_it(
    turns: list[str | Message], labels: list[str], value: float
) -> None:
    assert score(turns, [call(label) for label in labels], choices=LETTERS) == value


def test_two_crops_of_one_turn_are_read_in_the_next() -> None:
    both = Message("tool", (*CROP.content, *CROP.content))
    calls = [call("red"), call("none", images=0), call("blue")]
    assert score([asks("", "red"), both, "KT"], calls, choices=LETTERS) == 1.0
    assert score([asks("", "red"), both, "KA"], calls) == 0.5
    assert score([asks("", "red"), both, "KT"], [call("red"), call("red")], choices=LETTERS) == 0.0


def test_what_is_of_another_form_is_no_zero() -> None:
    assert score(["K"], [], readings=None) is None
    turns: list[str | Message] = [asks("", "red"), CROP, "K"]
    for label in (None, 7, ["red"], {}):
        assert score(turns, [call(label)]) == 0.0
    for readings in ([], "red", {"red": 3}, {"red": " "}, 1):
        with pytest.raises(ValueError, match="readings must map"):
            score(turns, [call("red")], readings=readings)
    with pytest.raises(ValueError, match="choices must be"):
        score(turns, [call("red")], choices="AHK")
    with pytest.raises(ValueError, match="came back"):
        score(turns, [call("red", images=2)])
