"""Counting by number, by boxes and by points."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.counting import counting, stated_number


def score(gold: Any, answer: str, **params: Any) -> float:
    result = counting(RewardInput((), (), answer, ground_truth=gold), **params)
    assert result is not None
    return result.value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12),
        ("There are 1,234 people.", 1234),
        ("Twenty-one", 21),
        ("一共二十一个", 21),
        ("no dogs", 0),
        ("3 + 2 = 5", 5),
        ("5 (3 + 2)", 5),
        ("(5)", 5),
        ("12.5", 12.5),
        ("−3", -3),
        ("one hundred", 100),
        ("a dozen eggs", 12),
        ("two hundred and five", 205),
        ("一百零五只", 105),
        ("3 hundred", 300),
        ("3 red and 2 blue, 5 in total", 5),
        ("A total of 5: 3 red and 2 blue", 5),
        ("Ten people altogether: six men, four women", 10),
        ("一共5个，3红2绿", 5),
        ("3 in total, or 5 in total", None),
        ("five or six", None),
        ("五六个", None),
        ("十几个", None),
        ("two and a half", 2.5),
        ("hundreds", None),
        ("3 or 4", None),
        ("at least 3", None),
        ("3+", None),
        ("three hundred", 300),
        ("1.2.3", None),
        ("A4 paper", None),
        ("several", None),
        ("", None),
    ],
)
def test_stated_number(text: str, number: float | None) -> None:
    assert stated_number(text) == number


@given(st.integers(0, 10**12))
def test_digits_are_read(number: int) -> None:
    assert stated_number(f"There are {number} things.") == number
    assert stated_number(f"{number:,}") == number


@given(st.integers(0, 99), st.text(max_size=100), st.sampled_from(["number", "boxes", "points"]))
def test_any_answer_gets_0_or_1(gold: int, answer: str, how: Any) -> None:
    value = score(gold, answer, how=how)
    assert value in (0, 1)
    assert value == score(str(gold), f"\n {answer}\t ", how=how)


@given(st.integers(0, 10**6))
def test_gold_is_full_marks_and_empty_is_none(gold: int) -> None:
    assert score(gold, str(gold)) == 1
    assert score(gold, f"{gold}.") == 1
    assert score(gold, str(gold + 1)) == 0
    for how in ("number", "boxes", "points"):
        assert score(gold, " \n", how=how) == 0


def test_long_thinking_and_white_space_change_nothing() -> None:
    assert score(5, "<think>" + "hm " * 10_000 + "</think>5" + " " * 20_000) == 1
    assert score(5, "<think>" + "hm " * 10_000 + "5") == 0


def test_by_boxes_and_points() -> None:
    boxes = json.dumps([{"bbox_2d": [i, 0, i + 10, 10]} for i in (0, 20, 40)])
    points = json.dumps([{"point_2d": [i, 0]} for i in (0, 20, 40)])
    assert score(3, boxes, how="boxes") == 1
    assert score(2, boxes, how="boxes") == 0
    assert score(3, points, how="points") == 1
    assert score(3, points, how="boxes") == 0
    assert score(3, json.dumps([{"point_2d": [1, 1]}] * 3), how="points") == 0
    assert score(3, json.dumps([{"bbox_2d": [i, 0, 500, 500]} for i in range(3)]), how="boxes") == 0
    assert score(1, '{"bbox_2d": [10, 0, 0, 10]}', how="boxes") == 0


@pytest.mark.parametrize("unit", ["1", "1,", "1,111", "one ", "十", "(", "= ", "-", "<answer>", "1.", "no "])
def test_hostile_text_takes_little_time(unit: str) -> None:
    start = time.process_time()
    score(5, unit * (1_000_000 // len(unit)))
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "gold", [-1, 2.5, True, "many", "", [], [3, "x"], {"count": 3}, "-1", "3 or 4", "at least 3"]
)
def test_a_count_that_is_none_is_the_datasets_fault(gold: Any) -> None:
    with pytest.raises(ValueError, match="no whole number"):
        score(gold, "3")


def test_unknown_way_and_missing_ground_truth() -> None:
    with pytest.raises(ValueError, match="how='fingers'"):
        score(3, "3", how="fingers")
    assert counting(RewardInput((), (), "3")) is None


@pytest.mark.parametrize("step", [0, 0.001, 1, 2])
def test_copies_moved_a_little_are_one_thing(step: float) -> None:
    for labels in ("aaaa", "abcd"):
        points = [{"point_2d": [500 + i * step, 500], "label": label} for i, label in enumerate(labels)]
        boxes = [
            {"bbox_2d": [100 + i * step, 100, 300, 300], "label": label} for i, label in enumerate(labels)
        ]
        assert score(4, json.dumps(points), how="points") == 0
        assert score(4, json.dumps(boxes), how="boxes") == 0


def test_things_side_by_side_are_several() -> None:
    points = [{"point_2d": [100 + 10 * i, 500]} for i in range(20)]
    boxes = [{"bbox_2d": [40 * i, 100, 40 * i + 60, 300]} for i in range(20)]
    assert score(20, json.dumps(points), how="points") == 1
    assert score(20, json.dumps(boxes), how="boxes") == 1


def test_boxes_before_the_answer_do_not_count() -> None:
    assert score(1, "Perhaps [900,900,950,950]. <answer>[200,200,300,300]</answer>", how="boxes") == 1
    assert score(2, "Perhaps [900,900,950,950]. <answer>[200,200,300,300]</answer>", how="boxes") == 0
