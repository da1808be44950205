"""Clocks, exact answers and sets."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput, Score
from rewards.builtin.puzzles import clock, exact_match, read_time, set_match


def run(judge: Any, gold: Any, answer: str, **params: Any) -> Score:
    result = judge(RewardInput((), (), answer, ground_truth=gold), **params)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("10:08", 608),
        ("10:08:30", 608.5),
        ("22:08", 608),
        ("12:00", 0),
        ("10h08", 608),
        ("eight past ten", 608),
        ("8 minutes past 10", 608),
        ("quarter to five", 285),
        ("half past six p.m.", 390),
        ("ten thirty", 630),
        ("ten oh five", 605),
        ("ten past ten", 610),
        ("5 o’clock", 300),
        ("5 pm", 300),
        ("ten o'clock", 600),
        ("十点零八分", 608),
        ("三点半", 210),
        ("四点三刻", 285),
        ("10.08", 608),
        ("10 hours and 8 minutes", 608),
        ("10 hours, 8 minutes and 30 seconds", 608.5),
        ("hour: 10, minute: 8", 608),
        ('{"hour": 10, "minute": 8}', 608),
        ("1008 hours", 608),
        ("10{:}08", 608),
        ("10\\colon 08", 608),
        ("10：08", 608),
        ("10 Uhr 08", 608),
        ("ten-ten", 610),
        ("noon", 0),
        ("12 noon", 0),
        ("midnight", 0),
        ("quarter to noon", 705),
        ("quarter past midnight", 15),
        ("a quarter of ten", 585),
        ("twenty-five to eleven", 635),
        ("8 min past 10", 608),
        ("差五分十点", 595),
        ("十点差五分", 595),
        ("10点过8分", 608),
        ("正午", 0),
        ("10.80", None),
        ("1.008", None),
        ("10.08.2024", None),
        ("noon or 3 pm", None),
        ("10.08 or 10.09", None),
        ("25:00", None),
        ("10:60", None),
        ("10:08 or 10:09", None),
        ("1:2:3:4", None),
        ("ten", None),
        ("", None),
    ],
)
def test_read_time(text: str, minutes: float | None) -> None:
    assert read_time(text, 12) == minutes


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("3:05 pm", 905),
        ("15:05", 905),
        ("12:30 am", 30),
        ("12:30 pm", 750),
        ("下午3点5分", 905),
        ("noon", 720),
        ("midnight", 0),
        ("正午", 720),
        ("2230 hours", 1350),
    ],
)
def test_the_half_of_the_day(text: str, minutes: float) -> None:
    assert read_time(text, 24) == minutes


times = st.tuples(st.integers(1, 12), st.integers(0, 59))


@given(times, times, st.integers(0, 59))
def test_tolerance_goes_round_the_dial(gold: Any, answer: Any, tolerance: int) -> None:
    (h, m), (i, n) = gold, answer
    forward = (60 * h + m - 60 * i - n) % 720
    value = run(clock, f"{h}:{m:02}", f"It shows {i}:{n:02}.", tolerance=tolerance).value
    assert value == (min(forward, 720 - forward) <= tolerance)


@given(times)
def test_every_spelling_of_a_time(gold: Any) -> None:
    h, m = gold
    for text in (
        f"{h}:{m:02}",
        f" {h:02}:{m:02}\n",
        f"{m} past {h}",
        f"{60 - m} to {h % 12 + 1}",
        f"{h}点{m}分",
        f"{h}.{m:02}",
        f"{h} hours and {m} minutes",
        f"hour: {h}, minute: {m}",
    ):
        if "60" not in text:
            assert run(clock, f"{h}:{m:02}", text, tolerance=0).value == 1, text
    assert run(clock, f"{h}:{m:02}", " ").value == 0


@pytest.mark.parametrize(
    ("gold", "params", "message"),
    [
        ("25:00", {}, "no time"),
        ("10:10 or 2:50", {}, "no time"),
        (610, {}, "no time"),
        ("", {}, "no time"),
        ("10:10", {"hours": 13}, "hours=13"),
        ("10:10", {"tolerance": 60}, "tolerance=60"),
        ("10:10", {"tolerance": -1}, "tolerance=-1"),
    ],
)
def test_faults_of_the_dataset_and_the_configuration(gold: Any, params: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(clock, gold, "10:10", **params)


@pytest.mark.parametrize(
    ("gold", "answer", "params", "value"),
    [
        ("AB-12", "AB-12", {}, 1),
        ("AB-12", "Look:\n  AB-12 ", {}, 1),
        ("a  b", "a b", {}, 1),
        (["x", "y"], "y", {}, 1),
        ("AB-12", "ab-12", {}, 0),
        ("AB-12", "ab-12", {"case": False}, 1),
        ("AB-12", "AB-12.", {}, 0),
        ("AB-12", "", {}, 0),
    ],
)
def test_exact_match(gold: Any, answer: str, params: Any, value: float) -> None:
    assert run(exact_match, gold, answer, **params).value == value


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        (["a", "b", "c"], "c, a and b", 1),
        (["a", "b", "c"], '["a", "b", "c"]', 1),
        (["a", "b", "c"], "The letters:\n- a\n- b\n- c", 1),
        (["a", "b", "c"], "a, b, c, d", 0.75),
        (["a", "b", "c"], "a, a, a", 1 / 3),
        (["salt and pepper"], "Salt and pepper.", 1),
        (["a"], "", 0),
        (["a"], "b", 0),
    ],
)
def test_set_match(gold: Any, answer: str, value: float) -> None:
    assert run(set_match, gold, answer).value == pytest.approx(value)
    assert run(set_match, gold, answer, exact=True).value == (value == 1)


words = st.sets(
    st.from_regex(r"[a-z]{1,6}", fullmatch=True).filter(lambda w: w not in ("and", "answer")), min_size=1
)


@given(words, words)
def test_set_match_is_the_jaccard_index(gold: set[str], answer: set[str]) -> None:
    score = run(set_match, sorted(gold), " " + "; ".join(sorted(answer)) + "\n")
    assert score.value == pytest.approx(len(gold & answer) / len(gold | answer))
    assert run(set_match, sorted(gold), ", ".join(gold)).value == 1


@given(st.text(max_size=200))
def test_any_answer_gets_a_value_in_range(answer: str) -> None:
    for judge, gold in ((clock, "10:10"), (exact_match, "10:10"), (set_match, ["10:10", "a"])):
        value = run(judge, gold, answer).value
        assert 0 <= value <= 1
        assert value == run(judge, gold, f"  {answer}\n").value


@pytest.mark.parametrize(
    "unit", ["1", "1:", "1:11 ", "- a\n", "10 past ", "a and ", "[", ",", "<answer>", "half ", "十点"]
)
def test_hostile_text_takes_little_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    for judge, gold in ((clock, "10:10"), (exact_match, "10:10"), (set_match, ["10:10"])):
        run(judge, gold, text)
    assert time.process_time() - start < 4


def test_without_ground_truth_they_do_not_apply() -> None:
    for judge in (clock, exact_match, set_match):
        assert judge(RewardInput((), (), "a")) is None
        with pytest.raises(ValueError, match="ground_truth"):
            run(judge, [], "a")
