"""What verl's functions are shown of an episode, and what they may return."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import Block, ImageRef, Message, RewardInput, VideoRef, text_message
from rewards.adapters import from_verl
from rewards.sdk import RewardError
from tests.unit.rewards.verl_functions import episode, value

IMAGE = Block("image", image=ImageRef("/crop.png"))


def tools(*turns: Message) -> RewardInput:
    return RewardInput((text_message("user", "Which?"),), turns, turns[-1].text if turns else "", "K")


def seen_of(x: RewardInput) -> str:
    texts: list[str] = []
    from_verl(lambda solution_str: texts.append(solution_str) or 0.0)(x)
    return texts[0]


ZOOM = '<tool_call>\n{"name": "zoom"}\n</tool_call>'


def test_the_response_is_all_that_followed_the_prompt_in_the_templates_words() -> None:
    crop = Message("tool", (IMAGE, Block("text", text="the crop")))
    x = tools(text_message("assistant", ZOOM), crop, text_message("assistant", "K"))
    assert seen_of(x) == (
        f"{ZOOM}\nuser\n<tool_response>\n<|vision_start|><|image_pad|><|vision_end|>the crop"
        "\n</tool_response>\nassistant\nK"
    )
    two = tools(text_message("assistant", ZOOM), crop, crop, text_message("assistant", "K"))
    assert seen_of(two).count("<|vision_start|><|image_pad|><|vision_end|>") == 2
    assert seen_of(two).count("\nuser\n") == 1
    clip = Message("tool", (Block("video", video=VideoRef(("/clip.mp4",))),))
    shown = "<|vision_start|><|video_pad|><|vision_end|>"
    assert shown in seen_of(tools(text_message("assistant", ZOOM), clip, text_message("assistant", "K")))
    no = text_message("user", "No.")
    asked = tools(text_message("assistant", "A?"), no, text_message("assistant", "K"))
    assert seen_of(asked) == "A?\nuser\nNo.\nassistant\nK"


def test_a_function_counts_the_images_that_tools_gave() -> None:
    def looks(predict_str: str, ground_truth: str, extra_info: Any = None) -> float:
        opened = predict_str.count("<|vision_start|><|image_pad|>")
        assert opened == predict_str.count("<|image_pad|><|vision_end|>")
        answered = predict_str.split("<answer>")[-1].split("</answer>")[0].strip() == ground_truth
        return 0.8 * answered + 0.2 * (opened > 0)

    crop = Message("tool", (IMAGE,))
    answer = text_message("assistant", "<think>It is K</think>\n<answer>K</answer>")
    assert value(from_verl(looks), tools(text_message("assistant", ZOOM), crop, answer)) == 1.0
    assert value(from_verl(looks), tools(answer)) == 0.8


@given(st.text())
def test_one_turn_is_its_text_and_an_answer_alone_stands_for_it(text: str) -> None:
    assert seen_of(tools(text_message("assistant", text))) == text
    assert seen_of(RewardInput((), (), text)) == text


@pytest.mark.parametrize(
    ("roles", "turns"),
    [
        ("", 2),
        ("a", 2),
        ("ata", 4),
        ("atta", 4),
        ("atata", 6),
        ("aua", 4),
    ],
)
def test_turns_are_counted_as_verl_counts_them(roles: str, turns: int) -> None:
    names: dict[str, Any] = {"a": "assistant", "t": "tool", "u": "user"}
    x = tools(*(text_message(names[role], "x") for role in roles))
    seen: list[Any] = []
    from_verl(lambda solution_str, extra_info: seen.append(extra_info) or 0.0)(x)
    assert seen == [{"num_turns": turns, "rollout_reward_scores": {}}]


def test_extra_info_is_its_column_or_all_columns() -> None:
    seen: list[Any] = []
    judged = from_verl(lambda solution_str, extra_info: seen.append(extra_info) or 0.0, name="f")
    own = {"num_turns": 2, "rollout_reward_scores": {}}
    held = {"index": 3}
    rows: list[dict[str, Any]] = [
        {"extra_info": held},
        {"extra_info": '{"index": 3}'},
        held,
        {**held, "extra_info": None},
    ]
    for columns in rows:
        judged(episode(**columns))
    assert seen[:3] == [held | own] * 3
    assert seen[3] == held | own | {"extra_info": None}
    seen[0]["index"] = 4
    assert held == {"index": 3}  # a function that writes into it changes no sample
    with pytest.raises(RewardError, match="extra_info is no object"):
        judged(episode(extra_info=[1]))


def test_tokens_are_counted_where_they_are_known() -> None:
    judged = from_verl(lambda reward_input: {"overall": reward_input["response_length"] / 10}, name="short")
    text = text_message("assistant", "It is K")
    assert value(judged, RewardInput((), (text,), "It is K", "K", completion_ids=(5, 6, 7))) == 0.3
    assert value(judged, RewardInput((), (), "", "K")) == 0.0
    with pytest.raises(RewardError, match=r"'short' asks for 'response_length'.*completion_ids"):
        judged(episode())
    other = from_verl(lambda reward_input: {"overall": reward_input["budget"]}, name="short")
    assert value(other, episode(budget=1)) == 1.0
    with pytest.raises(RewardError, match="'budget', but no column"):
        other(episode())


# What comes back.


@pytest.mark.parametrize(
    ("found", "right_value"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(1), 1.0),
        (np.bool_(True), 1.0),
        (np.array(0.5), 0.5),
        (np.array([0.5]), 0.5),
        (np.array([[0.5]]), 0.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([0.5]), 0.5),
        (torch.tensor(True), 1.0),
        ((True, [{"passed": 1}]), 1.0),
        ((0.5, "why", {}), 0.5),
        ([0.5, "K"], 0.5),
        ({"score": 0.5}, 0.5),
        ({"overall": 0.5, "format": 1.0}, 0.5),
        ({"reward": np.float64(0.5)}, 0.5),
        ({"score": 0.5, "overall": 1.0}, 0.5),
        ({"score": torch.tensor([0.5])}, 0.5),
        (({"score": 0.5}, "why"), 0.5),
    ],
)
def test_values_of_every_kind(found: Any, right_value: float) -> None:
    assert value(from_verl(lambda solution_str: found), episode()) == right_value
    (score,) = from_verl(lambda solution_strs: [found]).judge([episode()], {})
    assert score is not None
    assert score.value == right_value


@pytest.mark.parametrize("found", [None, {"score": None}, {"overall": None, "format": 1}, (None, "why")])
def test_none_does_not_apply(found: Any) -> None:
    assert from_verl(lambda solution_str: found).judge([episode()], {}) == [None]


def test_numbers_beside_the_score_are_parts_and_texts_a_note() -> None:
    found = {
        "score": np.float32(0.5),
        "acc": True,
        "iou": np.float64(0.25),
        "length": np.array([3]),
        "boxes": np.zeros(4),
        "nothing": None,
        "unknown": float("nan"),
        "pred": "K\n or  B",
        "long": "x" * 1000,
    }
    score = from_verl(lambda solution_str: found)(episode())
    assert score is not None
    assert score.parts == {"acc": 1.0, "iou": 0.25, "length": 3.0}
    assert re.fullmatch("pred: K or B; long: x{120}", score.note)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"acc": 1}, "without 'score'"),
        ({}, "without 'score'"),
        ("1.0", "not a number"),
        (np.zeros(2), "not a number"),
        (torch.zeros(2), "not a number"),
        ({"score": "high"}, "not a number"),
        (1j, "not a number"),
        ((), "empty tuple"),
        (np.array(["a"]), "not a number"),
        (np.array([np.datetime64("2020-01-01", "ns")]), "not a number"),
        (float("nan"), "not a finite number"),
        (np.float32("inf"), "not a finite number"),
        (2.0, "outside its range"),
    ],
)
def test_what_is_no_number_is_an_error(found: Any, reason: str) -> None:
    with pytest.raises(RewardError, match=reason):
        from_verl(lambda solution_str: found, name="f")(episode())


@pytest.mark.parametrize("found", [1.0, None, [], [1.0, 1.0], "ab", {"score": 1.0}, {1.0}, np.zeros((3, 1))])
def test_a_batch_must_come_back_whole(found: Any) -> None:
    with pytest.raises(RewardError, match=r"for 1 episodes|not a number"):
        from_verl(lambda solution_strs: found, name="f").judge([episode()], {})
