"""Advantages are relative to the group, and errors are left out of it."""

import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from posttrain.config import Grpo
from posttrain.reward_spec import RewardSpec
from posttrain.training.on_policy.signals.group_relative import AdvantageCounts, assign_advantages
from posttrain.types import RewardResult, Trajectory


def scored(group: int, totals: list[float | None]) -> list[Trajectory]:
    return [
        Trajectory("s", "t", group, index, reward=RewardResult(total)) for index, total in enumerate(totals)
    ]


def test_advantages_are_standardised_within_the_group() -> None:
    batch = scored(0, [0.0, 1.0]) + scored(1, [3.0, 5.0, 7.0])
    assert assign_advantages(batch) == AdvantageCounts(0, 0, 0)
    expected = [-0.70701, 0.70701, -0.99995, 0.0, 0.99995]
    assert [t.advantage for t in batch] == pytest.approx(expected, abs=1e-5)


def test_an_error_is_neither_a_zero_nor_part_of_the_baseline() -> None:
    batch = scored(0, [0.0, None, 1.0])
    batch.append(Trajectory("s", "t", 0, 3))
    assert assign_advantages(batch) == AdvantageCounts(zero_groups=0, dropped_groups=0, errors=2)
    alone = scored(0, [0.0, 1.0])
    assign_advantages(alone)
    assert [t.advantage for t in batch] == [alone[0].advantage, None, alone[1].advantage, None]


def test_equal_rewards_give_exactly_zero() -> None:
    batch = scored(0, [0.1 + 0.2] * 7)
    assert assign_advantages(batch).zero_groups == 1
    assert [t.advantage for t in batch] == [0.0] * 7


def test_a_group_with_one_score_is_dropped_whole() -> None:
    batch = scored(4, [1.0, None])
    assert assign_advantages(batch) == AdvantageCounts(zero_groups=0, dropped_groups=1, errors=1)
    assert [t.advantage for t in batch] == [None, None]


def test_the_order_of_the_batch_changes_nothing() -> None:
    batch = scored(0, [0.0, 0.5, 1.0]) + scored(1, [1.0, 0.2])
    assign_advantages(batch)
    first = [t.advantage for t in batch]
    assign_advantages(batch[::-1])
    assert [t.advantage for t in batch] == first


def test_an_episode_that_the_world_failed_is_no_error_of_a_reward() -> None:
    batch = scored(0, [0.0, 1.0])
    batch.append(Trajectory("s", "t", 0, 2, stop_reason="error"))
    assert assign_advantages(batch) == AdvantageCounts(zero_groups=0, dropped_groups=0, errors=0)
    assert batch[2].advantage is None
    assert batch[0].advantage == pytest.approx(-0.70701, abs=1e-5)


def compared(**settings: Any) -> Grpo:
    return Grpo.model_validate({"name": "grpo"} | settings)


REWARDS = [RewardSpec("answer"), RewardSpec("calls", 0.3), RewardSpec("overlong", 0.5)]


def judged(group: int, values: Sequence[tuple[float | None, float, float]]) -> list[Trajectory]:
    """Episodes with an outcome, a bonus and a penalty each."""
    made = []
    for index, (outcome, bonus, penalty) in enumerate(values):
        parts = {"answer": outcome, "calls": bonus, "overlong": penalty}
        total = (outcome or 0.0) + 0.3 * bonus + 0.5 * penalty
        made.append(Trajectory("s", "t", group, index, reward=RewardResult(total, parts)))
    return made


def advantages(batch: list[Trajectory], **settings: Any) -> list[float | None]:
    assign_advantages(batch, {"t": REWARDS}, compared(**settings))
    return [t.advantage for t in batch]


UNSOLVED = [(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, 0.0)]


def test_bonuses_do_not_teach_where_nothing_was_solved() -> None:
    """0, 0, 0.3 and 0.3 would be as far apart as right and wrong."""
    assert advantages(judged(0, UNSOLVED)) == [0.0] * 4
    batch = judged(0, UNSOLVED)
    counts = assign_advantages(batch, {"t": REWARDS}, compared())
    assert counts == AdvantageCounts(zero_groups=0, dropped_groups=0, errors=0, shaped_groups=1)
    asked_for = advantages(judged(0, UNSOLVED), unsolved_bonuses=True)
    right_and_wrong = advantages(judged(0, [(0.0, 0.0, 0.0)] * 2 + [(1.0, 0.0, 0.0)] * 2))
    assert asked_for == pytest.approx(right_and_wrong, abs=2e-3)
    # Of a task whose rewards nobody tells there is no outcome to look at.
    batch = judged(0, UNSOLVED)
    assert assign_advantages(batch).shaped_groups == 0
    assert batch[0].advantage == pytest.approx(asked_for[0])


def test_bonuses_teach_where_the_outcome_was_reached_or_differs() -> None:
    solved = judged(0, [(1.0, bonus, 0.0) for bonus in (0.0, 1.0)])
    assert assign_advantages(solved, {"t": REWARDS}, compared()).shaped_groups == 1
    assert [t.advantage for t in solved] == pytest.approx([-0.7068, 0.7068], abs=1e-3)
    mixed = judged(0, [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)])
    assert assign_advantages(mixed, {"t": REWARDS}, compared()).shaped_groups == 0
    assert sorted([0, 1, 2], key=lambda place: mixed[place].advantage or 0) == [2, 1, 0]
    inapplicable = judged(0, [(None, 0.0, 0.0), (None, 1.0, 0.0)])
    assert assign_advantages(inapplicable, {"t": REWARDS}, compared()).shaped_groups == 0


def test_a_judge_that_stands_in_for_the_rule_is_the_outcome() -> None:
    rewards = [RewardSpec("answer"), RewardSpec("judge", unless={"answer": 1.0}), RewardSpec("overlong", 0.5)]

    def batch(*values: tuple[float, float | None, float]) -> list[Trajectory]:
        made = []
        for index, (rule, judge, bonus) in enumerate(values):
            parts = {"answer": rule, "judge": judge, "overlong": bonus}
            total = rule + (judge or 0.0) + 0.5 * bonus
            made.append(Trajectory("s", "t", 0, index, reward=RewardResult(total, parts)))
        return made

    differing = batch((0.0, 0.9, 0.0), (0.0, 0.1, 0.0), (1.0, None, 0.0))
    assert assign_advantages(differing, {"t": rewards}, compared()).shaped_groups == 0
    assert sorted(range(3), key=lambda place: differing[place].advantage or 0) == [1, 0, 2]
    unsolved = batch((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    assert assign_advantages(unsolved, {"t": rewards}, compared()).shaped_groups == 1
    assert [t.advantage for t in unsolved] == [0.0, 0.0]
    # Asked beside a rule that decided, a judge changes nothing.
    audited = batch((1.0, None, 0.0), (1.0, 0.0, 0.0))
    assert assign_advantages(audited, {"t": rewards}, compared()).zero_groups == 1


def test_penalties_teach_where_nothing_was_solved() -> None:
    batch = judged(0, [(0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, -1.0)])
    found = advantages(batch)
    assert found[0] == found[1]
    assert found[2] == pytest.approx(-1.1543, abs=1e-3)


def test_a_condition_that_fails_keeps_a_penalty_out() -> None:
    rewards = [RewardSpec("answer"), RewardSpec("overlong", 0.5, only_if={"answer": 1.0})]
    batch = judged(0, [(0.0, 0.0, -1.0), (0.0, 0.0, 0.0)])
    assign_advantages(batch, {"t": rewards}, compared())
    assert [t.advantage for t in batch] == [0.0, 0.0]


def test_without_division_a_group_counts_by_how_much_it_differs() -> None:
    batch = scored(0, [0.0, 1.0]) + scored(1, [0.0, 0.1])
    assign_advantages(batch, None, compared(scale_rewards="none"))
    assert [t.advantage for t in batch] == pytest.approx([-0.5, 0.5, -0.05, 0.05], rel=1e-12)
    assign_advantages(batch, None, compared(scale_rewards="batch"))
    deviation = statistics.stdev([0.0, 1.0, 0.0, 0.1]) + 1e-4
    expected = [value / deviation for value in (-0.5, 0.5, -0.05, 0.05)]
    assert [t.advantage for t in batch] == pytest.approx(expected, rel=1e-12)


def test_left_out_an_episode_is_compared_with_the_others() -> None:
    rewards = [0.2, 0.9, 0.4, 1.0]
    batch = scored(0, [*rewards, None])
    assign_advantages(batch, None, compared(scale_rewards="none", baseline="leave_one_out"))
    expected = [r - statistics.fmean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]
    assert [t.advantage for t in batch[:4]] == pytest.approx(expected, rel=1e-12)
    assert batch[4].advantage is None
