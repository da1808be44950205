"""Counting by number, by boxes and by points."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.counting import counting, in_digits, stated_number


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
        ("3 or 4", None),
        ("at least 3", None),
        ("3+", None),
        ("three hundred", None),
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


def test_all_english_and_chinese_numbers_to_99() -> None:
    digits = "零一二三四五六七八九"
    for n in range(10, 100):
        tens = "" if n < 20 else digits[n // 10]
        assert in_digits(f"{tens}十{digits[n % 10] if n % 10 else ''}") == str(n)
    assert in_digits("zero nineteen twenty thirty-three ninety nine") == "0 19 20 33 99"


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
