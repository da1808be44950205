"""Looks that count: how many, and which of them show the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import Block, ImageRef, Message, RewardInput, ToolCall
from rewards.builtin.tool_calls import tool_calls


def episode(answer: str, calls: tuple[ToolCall, ...] = (), **columns: Any) -> RewardInput:
    return RewardInput((), (), answer, tool_calls=calls, columns=columns)


def zooms(different: int, repeated: int = 0, failed: int = 0) -> tuple[ToolCall, ...]:
    seen = [ToolCall("image_zoom_in_tool", {"img_idx": i}, True, images=1) for i in range(different)]
    return tuple(seen + seen[:1] * repeated + [ToolCall("", {}, False, "unreadable")] * failed)


def called(calls: tuple[ToolCall, ...], target: int | None, answer: str = "K") -> float:
    score = tool_calls(episode(answer, calls=calls, target_tool_calls=target))
    assert score is not None
    return score.value


@pytest.mark.parametrize(
    ("calls", "target", "value"),
    [
        (zooms(0), 0, 1),
        (zooms(1), 0, 0),
        (zooms(0), 1, 0),
        (zooms(1), 1, 1),
        (zooms(0, failed=5), 1, 0),
        (zooms(1, failed=5), 1, 1),
        (zooms(3), 3, 1),
        (zooms(1), 3, 1 / 3),
        (zooms(1, repeated=2), 3, 1 / 3),
        (zooms(4), 3, 2 / 3),
        (zooms(6), 3, 0),
    ],
)
def test_tool_calls(calls: tuple[ToolCall, ...], target: int, value: float) -> None:
    assert called(calls, target) == pytest.approx(value)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 6))
def test_more_than_the_target_never_pays(different: int, repeated: int, failed: int, target: int) -> None:
    value = called(zooms(different, repeated if different else 0, failed), target)
    assert 0.0 <= value <= 1.0 == called(zooms(target), target)
    assert called(zooms(target + different + 1), target) < 1.0
    assert called(zooms(target), target, answer=" ") == 0.0


def test_target_comes_from_the_sample_or_the_parameter() -> None:
    assert tool_calls(episode("K", calls=zooms(2))) is None
    assert tool_calls(episode("K", calls=zooms(2)), target=2).value == 1.0  # type: ignore[union-attr]
    assert tool_calls(episode("K", calls=zooms(2), target_tool_calls=1), target=2).value == 0.0  # type: ignore[union-attr]
    for wrong in (-1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="target_tool_calls"):
            tool_calls(episode("K"), target=wrong)  # type: ignore[arg-type]


def look(**arguments: Any) -> ToolCall:
    return ToolCall("image_zoom_in_tool", arguments, True, images=1)


BOX = [100, 100, 300, 300]
SAME = [
    {"bbox_2d": BOX, "label": "b", "img_idx": 0},
    {"label": "a", "img_idx": 0, "bbox_2d": BOX},
    {"bbox_2d": [100.0, 100.0, 300.0, 300.0], "label": "a", "img_idx": 0.0},
    {"bbox_2d": [100, 100, 300, 300.001], "label": "a", "img_idx": 0},
    {"bbox_2d": [101, 99, 301, 300], "label": "a", "img_idx": 0},
    {"bbox_2d": [98, 98, 305, 303], "label": "a", "img_idx": 0},
    {"bbox_2d": [300, 300, 100, 100], "label": "a", "img_idx": 0},
    {"bbox_2d": ["100", "100", "300", "300"], "label": "a", "img_idx": "0"},
    {"bbox_2d": "[100, 100, 300, 300]", "label": "a", "img_idx": 0},
    {"bbox_2d": [[100, 100], [300, 300]], "label": "a", "img_idx": 0},
    {"bbox_2d": {"x1": 100, "y1": 100, "x2": 300, "y2": 300}, "img_idx": 0},
    {"bbox": BOX, "image_index": 0},
    {"x1": 100, "y1": 100, "x2": 300, "y2": 300},
    {"bbox_2d": BOX, "label": "a", "img_idx": 0, "n": 1},
    {"BBOX_2D": BOX, "Img_Idx": 0},
]
OTHER = [
    {"bbox_2d": BOX, "label": "a", "img_idx": 1},
    {"bbox_2d": [300, 100, 500, 300], "label": "a", "img_idx": 0},
    {"bbox_2d": [100, 100, 200, 200], "label": "a", "img_idx": 0},
    {"bbox_2d": [150, 100, 350, 300], "label": "a", "img_idx": 0},
    {"bbox_2d": [0, 0, 1000, 1000], "label": "a", "img_idx": 0},
]


@pytest.mark.parametrize("arguments", SAME, ids=repr)
def test_the_same_look_in_other_words(arguments: dict[str, Any]) -> None:
    assert called((look(bbox_2d=BOX, label="a", img_idx=0), look(**arguments)), 2) == 0.5
    assert called((look(**arguments), look(bbox_2d=BOX, label="a", img_idx=0)), 2) == 0.5


@pytest.mark.parametrize("arguments", OTHER, ids=repr)
def test_another_look(arguments: dict[str, Any]) -> None:
    assert called((look(bbox_2d=BOX, label="a", img_idx=0), look(**arguments)), 2) == 1


def test_calls_without_a_region_are_told_apart_by_what_they_ask_for() -> None:
    pages = [ToolCall("page", {"number": n, "reason": "why"}, True, images=1) for n in (1, 2, "2", 2.0)]
    assert called(tuple(pages[:2]), 2) == 1
    assert called(tuple(pages[1:3]), 2) == called(tuple(pages[2:]), 2) == 0.5


def test_the_same_pixels_are_the_same_look() -> None:
    def shown(*hashes: str) -> float:
        blocks = tuple(Block("image", image=ImageRef("/crop.png", sha)) for sha in hashes)
        calls = tuple(look(bbox_2d=[0, 0, 900 + 400 * i, 900], img_idx=0) for i in range(len(hashes)))
        x = RewardInput((), (Message("tool", blocks),), "K", tool_calls=calls)
        score = tool_calls(x, target=len(hashes))
        assert score is not None
        return score.value

    assert shown("a", "a") == 0.5
    assert shown("a", "b") == 1
    assert shown("", "") == 1


@given(
    st.lists(st.integers(0, 400), min_size=4, max_size=4),
    st.text(max_size=5),
    st.sampled_from([int, float, str]),
    st.permutations(["bbox_2d", "label", "img_idx"]),
)
def test_spelling_never_makes_a_look(numbers: list[int], label: str, kind: Any, order: list[str]) -> None:
    box = [numbers[0], numbers[1], numbers[0] + numbers[2] + 1, numbers[1] + numbers[3] + 1]
    again = {"bbox_2d": [kind(n) for n in box], "label": label, "img_idx": kind(0)}
    calls = (look(bbox_2d=box, label="a", img_idx=0), look(**{key: again[key] for key in order}))
    assert called(calls, 2) == 0.5


@pytest.mark.parametrize(
    "answer",
    ["", " ", ".", "…", "!?", "\u200b", "\ufeff.", "\u3164", "<answer> </answer>", "\\boxed{}", "---"],
)
def test_an_answer_that_says_nothing_is_none(answer: str) -> None:
    assert called(zooms(1), 1, answer=answer) == 0


@pytest.mark.parametrize("answer", ["K", "7", "是", "△", "<answer>K</answer>", "a.", "+"])
def test_a_short_answer_is_one(answer: str) -> None:
    assert called(zooms(1), 1, answer=answer) == 1


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
        ),
        max_size=4,
    ),
    st.sampled_from(["bbox_2d", "region", "x"]),
)
def test_any_arguments_can_be_compared(arguments: dict[str, Any], key: str) -> None:
    for each in (arguments, {key: arguments}, {key: list(arguments.values())}):
        assert called((ToolCall("t", each, True, images=1),) * 2, 2) in (0.5, 1)


@pytest.mark.parametrize("wrong", [-1, 1.0, True, "2", [1], {}, float("nan")])
def test_a_target_of_another_type_is_a_fault_of_the_data_in_any_column(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"looks is .*whole number"):
        tool_calls(episode("K", zooms(1), looks=wrong), target=1, column="looks")


def test_the_targets_column_may_have_another_name() -> None:
    """A row without a target in it takes the task's, and a target elsewhere is not looked at."""

    def value(column: str, **columns: Any) -> float | None:
        score = tool_calls(episode("K", zooms(2, failed=3), **columns), target=1, column=column)
        return None if score is None else score.value

    assert value("looks", looks=2, target_tool_calls=0) == 1.0
    assert value("looks", target_tool_calls=2) == value("looks", looks=None) == 0.0
    assert tool_calls(episode("K", zooms(2), looks=None), column="looks") is None
