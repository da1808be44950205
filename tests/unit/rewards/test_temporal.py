"""Stretches of time: every form is read, and their overlap is what brute force over moments says."""

import itertools
import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.temporal import temporal_iou

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PAIR = st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda p: [p[0], p[0] + p[1]])
PAIRS = st.lists(PAIR, min_size=1, max_size=4)


def value(gold: Any, answer: str, **params: Any) -> float:
    score = temporal_iou(RewardInput((), (), answer, ground_truth=gold), **params)
    assert score is not None
    return score.value


def clock(seconds: int) -> str:
    return f"{seconds // 60:02d}:{seconds % 60:02d}"


def moments(pairs: Any) -> set[int]:
    return {moment for start, end in pairs for moment in range(start, end)}


def overlap(a: Any, b: Any) -> float:
    return len(moments([a]) & moments([b])) / len(moments([a]) | moments([b]))


@pytest.mark.parametrize(
    "answer",
    [
        "from 3 to 8 seconds",
        "It happens from 3.0s to 8.0s.",
        "3 - 8",
        "3.0–8.0 seconds",
        "00:03-00:08",
        "Between 0:03 and 0:08.",
        "between 3 and 8 seconds",
        "[3, 8]",
        "(3.0, 8.0)",
        "<answer>3 to 8</answer>",
        r"\boxed{[3, 8]}",
        r"\boxed{3 \text{ to } 8}",
        '{"start": 3, "end": 8}',
        '```json\n[{"start_time": "00:03", "end_time": "00:08"}]\n```',
        '{"timestamps": [["0:03", "0:08"]]}',
        "The event starts at 3 seconds and ends at 8 seconds.",
        "Start: 00:03\nEnd: 00:08",
        "<3.0 seconds> to <8.0 seconds>",
        "<t>3</t>-<t>8</t>",
        "00:03.0 --> 00:08.0",
        "从3秒到8秒",
        "第3秒至第8秒",
        "3秒から8秒まで",
        "3초부터 8초까지",
        "von 3 bis 8 Sekunden",
        "de 3 à 8 secondes",
        "desde 3 hasta 8 segundos",
        "с 3 по 8 секунду",
        "t=3s to t=8s",
        "<0:03> to <0:08>",
        "He does not sit, he stands from 3 to 8.",
        "Not at first. From 3 to 8 seconds.",
        "0h0m3s-0h0m8s",
        "3..8",
        "from the 3 second mark until the 8 second mark",
        "**3 ~ 8 sec**",
        "In 2 shots he is seen. From 0:03 to 0:08 he eats.",
        "<think>from 0 to 99</think>3-8",
        "0:03-0:08\nI hope that helps.",
        "The video lasts 5 minutes.\nAnswer: 0:03 → 0:08",
    ],
)
def test_forms_of_one_stretch(answer: str) -> None:
    assert value([3, 8], answer) == 1
    assert value("00:03-00:08", answer) == 1
    assert value([100, 200], answer) == 0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("1 min 5 s to 2 minutes", [65, 120]),
        ("from 1 to 2 minutes", [60, 120]),
        ("1:00:03.5 to 1:00:08", [3603.5, 3608]),
        ("1h2m3s - 1h2m9s", [3723, 3729]),
        ("1分5秒到2分钟", [65, 120]),
        ("3.25 to 8.75", ["3.25s", "8.75s"]),
    ],
)
def test_units(answer: str, gold: Any) -> None:
    assert value(gold, answer) == pytest.approx(1)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "never",
        "at 5 seconds",
        "8 to 3",
        "3 to 3",
        "the 3rd to 5th",
        "scene2 to scene9",
        "not from 3 to 8 s",
        "It isn't 3-8.",
        "It does not happen from 3 to 8",
        "不是3秒到8秒",
    ],
)
def test_no_stretch(answer: str) -> None:
    assert value([3, 8], answer) == 0


@given(PAIRS)
def test_several_in_many_forms(pairs: list[list[int]]) -> None:
    for answer in (
        json.dumps(pairs),
        json.dumps([{"start": a, "end": b} for a, b in pairs]),
        ", ".join(f"{clock(a)}-{clock(b)}" for a, b in pairs),
        "\n".join(f"{i}. from {a} s to {b} s" for i, (a, b) in enumerate(pairs, 1)),
        "<answer>" + " and ".join(f"{a} to {b} seconds" for a, b in pairs) + "</answer>",
    ):
        assert value(pairs, answer) == pytest.approx(1), answer
        assert value(pairs[::-1], answer) == pytest.approx(1)


@given(PAIRS, PAIRS, st.sampled_from([None, 0.3, 0.5]))
def test_matching_is_the_best_of_all(
    golds: list[list[int]], found: list[list[int]], threshold: float | None
) -> None:
    def pair(a: Any, b: Any) -> float:
        return overlap(a, b) if threshold is None else float(overlap(a, b) >= threshold)

    few, many = sorted((golds, found), key=len)
    best = max(sum(map(pair, few, order)) for order in itertools.permutations(many, len(few)))
    expected = 2 * best / (len(golds) + len(found))
    assert value(golds, json.dumps(found), threshold=threshold) == pytest.approx(expected)


@given(PAIRS, PAIRS)
def test_the_union_counts_moments(golds: list[list[int]], found: list[list[int]]) -> None:
    expected = len(moments(golds) & moments(found)) / len(moments(golds) | moments(found))
    assert value(golds, json.dumps(found), metric="union") == pytest.approx(expected)


@given(st.integers(0, 20), st.integers(0, 20))
def test_nearer_is_never_worse(a: int, b: int) -> None:
    near, far = sorted((a, b))
    assert value([50, 60], f"{50 + near} to {60 + near}") >= value([50, 60], f"{50 + far} to {60 + far}")


@given(st.decimals(0, 99, places=1), st.decimals("0.1", 99, places=1))
def test_a_tenth_of_a_second_is_no_matter_of_rounding(start: Any, length: Any) -> None:
    gold = [float(start), float(start + length)]
    assert value(gold, f"from {start} to {start + length} seconds") == 1
    assert value(gold, f"[{start}, {start + length}]", metric="union") == 1


def test_nothing_happens() -> None:
    assert value([], "It does not happen.") == 1
    assert value([], "from 3 to 8") == 0
    assert value([], "") == 0


@pytest.mark.parametrize(
    "gold",
    [
        3,
        [3],
        [8, 3],
        [3, 3],
        [-1, 5],
        "soon",
        {"start": 3},
        [[3, 8], [5]],
        [True, 5],
        ["a", "b"],
        [3, 2e9],
        [[]],
        "",
    ],
)
def test_faults_of_the_dataset_are_named(gold: Any) -> None:
    with pytest.raises(ValueError, match=r"ground_truth.*give \[start, end\]"):
        value(gold, "from 3 to 8")


@pytest.mark.parametrize("params", [{"metric": "iou"}, {"threshold": 0}, {"threshold": 2}])
def test_wrong_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="take matched or union"):
        value([3, 8], "3-8", **params)


def test_without_a_gold_it_does_not_apply() -> None:
    assert temporal_iou(RewardInput((), (), "3-8")) is None


@given(TEXT)
def test_any_text_is_judged(text: str) -> None:
    assert 0 <= value([3, 8], text) <= 1
    assert 0 <= value([3, 8], f"{text} 3-8", metric="union") <= 1


@pytest.mark.parametrize(
    "unit", ["3-8 ", "1", "3:", "3 to ", "[", "[3,", "1h", "<t>", "-", "3-8\n", "从", "3 and "]
)
def test_long_answers_are_quick(unit: str) -> None:
    start = time.process_time()
    assert value([3, 8], unit * (10**6 // len(unit))) < 0.1
    assert time.process_time() - start < 3


def test_stretches_around_everything_pay_by_their_overlap_alone() -> None:
    assert value([3, 8], "0 to 50") == pytest.approx(0.1)
    flood = "\n".join(f"{a} to {a + 5}" for a in range(100))
    assert value([3, 8], flood) == pytest.approx(2 / 101)
    assert np.isclose(value([3, 8], "3 to 8, 3 to 8, 3 to 8"), 0.5)
