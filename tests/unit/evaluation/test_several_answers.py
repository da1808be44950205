"""Several answers a prompt: pass@k without bias, intervals with prompts as the unit, bins of difficulty."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from posttrain.config import EvalTask
from posttrain.config.base import MisfitError
from posttrain.config.tasks import PluginRef
from posttrain.evaluation.difficulty import bins_in_order, difficulty_bins
from posttrain.evaluation.evaluate import by_difficulty, calls_by_difficulty, summarize
from posttrain.evaluation.resampling import bootstrap_intervals
from posttrain.evaluation.shares import mean_share, pass_shares
from posttrain.evaluation.statistics import pass_at_k, wilson_interval
from posttrain.evaluation.table import evaluation_table
from posttrain.run.estimates import Estimate
from posttrain.run.rows import EvaluationRow
from posttrain.types import RewardResult, ToolCall, Trajectory


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(case: tuple[int, int, int]):
    right, n, k = case
    answers = [True] * right + [False] * (n - right)
    subsets = [any(chosen) for chosen in itertools.combinations(answers, k)]
    assert math.isclose(pass_at_k(right, n, k), Fraction(sum(subsets), len(subsets)), abs_tol=1e-12)


def test_counts_that_cannot_be_are_refused():
    for case in ((3, 2, 1), (1, 2, 3), (1, 2, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*case)


def test_one_answer_a_prompt_keeps_wilsons_interval():
    estimate = mean_share([1, 0, 1, 1], answers=1)
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (0.75, *wilson_interval(3, 4), 4)
    assert pass_shares([1, 0], answers=1) == {}


def test_intervals_take_prompts_as_the_unit_and_not_answers():
    rng = np.random.default_rng(0)
    right = [8 * int(rng.random() < 0.5) for _ in range(200)]  # a prompt's eight answers are all alike
    estimate = mean_share(right, answers=8)
    spread = 1.96 * math.sqrt(np.var([count / 8 for count in right]) / 200)
    assert estimate.high - estimate.low == pytest.approx(2 * spread, rel=0.06)
    low, high = wilson_interval(sum(right), 1600)
    assert estimate.high - estimate.low > 2.5 * (high - low)
    assert mean_share(right, answers=8) == estimate


def test_prompts_that_are_all_alike_are_no_certainty():
    assert mean_share([4] * 20, answers=4) == Estimate(1.0, *wilson_interval(20, 20), 20)
    (low, high), *_ = bootstrap_intervals(np.array([[0.0], [1.0]] * 40))
    assert 0.36 < low < 0.42
    assert 0.58 < high < 0.64


def episodes(*groups: tuple[int, int]) -> list[Trajectory]:
    """Episodes of groups, given as (right, wrong)."""
    verdicts = [
        (g, float(i < right)) for g, (right, wrong) in enumerate(groups) for i in range(right + wrong)
    ]
    return [
        Trajectory("s", "t", group, 0, reward=RewardResult(value, values={"answer_accuracy": value}))
        for group, value in verdicts
    ]


def test_a_row_of_several_answers_survives_its_file_and_stands_in_the_table():
    played = episodes((4, 0), (2, 2), (0, 4), (1, 3))
    task = EvalTask(data="letters", temperature=1.0, samples_per_prompt=4)
    row = summarize(played, "answer_accuracy", ("sft", "letters", 9))
    row = replace(row, difficulty=by_difficulty(played, task, {0: 0.9, 1: 0.1, 2: 0.05, 3: 0.2}))
    assert (row.n, row.samples_per_prompt, row.accuracy) == (4, 4, pytest.approx(7 / 16))
    assert {k: round(each.value, 4) for k, each in row.pass_at.items()} == {"2": 0.5833, "4": 0.75}
    assert EvaluationRow.from_json(row.to_json()) == row
    table = evaluation_table([row])
    assert "4 × 4" in table
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["pass@2", "pass@4"]


def test_a_row_of_an_older_version_has_one_answer_a_prompt():
    row = EvaluationRow.from_json({"stage": "sft", "task": "a", "step": 3, "n": 9, "accuracy": 0.5})
    assert (row.samples_per_prompt, row.parts) == (1, {})
    assert set(row.to_json()) == {"stage", "task", "step", "n", "accuracy", "low", "high", "metrics"}


def test_accuracies_by_difficulty_are_those_of_the_bins_prompts():
    played = episodes((1, 0), (1, 0), (0, 1), (0, 1), (1, 0))
    levels = {0: 0.0, 1: 0.8, 2: 0.1, 3: 0.2, 4: None}
    task = EvalTask(data="letters")
    found = by_difficulty(played, task, levels)
    assert {name: (each.value, each.n) for name, each in found.items()} == {
        "pass_rate 0": (1.0, 1),
        "pass_rate 0 – 0.25": (0.0, 2),
        "pass_rate 0.75 – 1": (1.0, 1),
    }
    assert by_difficulty(played, task, dict.fromkeys(levels)) == {}


@pytest.mark.parametrize(
    ("values", "bins"),
    [
        ([0, 1, 0.5, 0.51, True, math.nan], ["0", "1", "0.25 – 0.5", "0.5 – 0.75", None, None]),
        ([3, 1, 2, None], ["3", "1", "2", None]),
        (["hard", "easy", ""], ["hard", "easy", None]),
        ([*range(100, 112)], ["≤ 102"] * 3 + ["102 – 106"] * 3 + ["106 – 109"] * 3 + ["> 109"] * 3),
        ([f"level {i}" for i in range(11)], [None] * 11),
    ],
)
def test_bins_follow_what_a_column_holds(values: list[object], bins: list[str | None]):
    named = [None if name is None else f"level {name}" for name in bins]
    assert difficulty_bins(values, "level") == named


def test_bins_stand_in_the_order_of_their_values():
    values = [10, 9, "hard", 2]
    bins = difficulty_bins(values, "level")
    assert bins_in_order(bins, values) == ["level 2", "level 9", "level 10", "level hard"]


def test_several_greedy_answers_are_refused():
    with pytest.raises(ValueError, match="at temperature 0 all 4 answers to a prompt are the same") as caught:
        EvalTask(data="letters", samples_per_prompt=4)
    assert isinstance(caught.value.errors()[0]["ctx"]["error"], MisfitError)  # pyright: ignore[reportAttributeAccessIssue]


def zoomed(group: int, calls: int, failed: int = 1) -> Trajectory:
    seen = [ToolCall("zoom", {}, True, images=1)] * calls + [ToolCall("zoom", {}, False, "no")] * failed
    return Trajectory("s", "t", group, 0, tool_calls=seen)


def test_calls_are_told_by_difficulty_and_whether_they_follow_it():
    task = EvalTask(data="letters", tools=[PluginRef(name="zoom")], max_turns=4, difficulty_column="looks")
    levels: dict[int, object] = {0: 0, 1: 1, 2: 2, 3: 2, 4: "many", 5: None}
    played = [zoomed(group, calls) for group, calls in enumerate((1, 1, 2, 3, 9, 9))]
    found = calls_by_difficulty(played, task, levels)
    expected: Any = spearmanr([1, 1, 2, 3], [0, 1, 2, 2])
    assert found == {
        "tool_calls/looks 0": 1.0,
        "tool_calls/looks 1": 1.0,
        "tool_calls/looks 2": 2.5,
        "tool_calls/looks many": 9.0,
        "tool_calls/rank_correlation": round(expected.statistic, 4),
    }
    always_one = [zoomed(group, 1) for group in range(4)]
    assert "tool_calls/rank_correlation" not in calls_by_difficulty(always_one, task, levels)
    assert calls_by_difficulty(played[:2], task, dict.fromkeys(levels, 1)) == {}
    without = EvalTask(data="letters", difficulty_column="looks")
    assert calls_by_difficulty(played, without, levels) == {}
