"""Advantages are relative to the group, and errors are left out of it."""

import pytest

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
