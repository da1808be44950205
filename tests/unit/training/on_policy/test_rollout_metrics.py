"""Figures of a rollout: over all of its episodes, and over those of each task."""

import pytest

from posttrain.training.on_policy.rollout_metrics import rollout_metrics
from posttrain.training.on_policy.signals.group_relative import assign_advantages
from posttrain.types import RewardResult, Trajectory

#: By task, a list of groups of rewards; None is a reward that failed.
TASKS: dict[str, list[list[float | None]]] = {
    "count": [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]],
    "point": [[0.5, 0.25], [None, 0.75]],
}


def played(tasks: dict[str, list[list[float | None]]]) -> list[Trajectory]:
    made: list[Trajectory] = []
    for task, groups in tasks.items():
        number = len({each.group for each in made})
        for group, rewards in enumerate(groups, number):
            for episode, reward in enumerate(rewards):
                values: dict[str, float | None] = {} if reward is None else {"right": reward}
                verdict = RewardResult(total=reward, values=values)
                stop = "max_tokens" if task == "point" else "answer"
                made.append(Trajectory("s", task, group, episode, reward=verdict, stop_reason=stop))
                made[-1].token_ids = [0] * (10 if task == "point" else 4)
    return made


def test_each_task_is_told_apart() -> None:
    trajectories = played(TASKS)
    metrics = rollout_metrics(trajectories, assign_advantages(trajectories))
    assert metrics["reward/mean"] == metrics["reward/right"] == pytest.approx(4.5 / 9)
    assert metrics["reward/count/mean"] == metrics["reward/count/right"] == 0.5
    assert metrics["reward/point/mean"] == pytest.approx(0.5)
    assert metrics["advantage/zero_groups"] == 2
    assert metrics["advantage/count/zero_groups"] == 2
    assert metrics["advantage/point/zero_groups"] == 0  # one taught something, the other was dropped
    assert metrics["advantage/dropped_groups"] == 1
    assert metrics["episode/tokens"] == pytest.approx((6 * 4 + 4 * 10) / 10)
    assert (metrics["episode/count/tokens"], metrics["episode/point/tokens"]) == (4, 10)
    assert (metrics["episode/count/truncated"], metrics["episode/point/truncated"]) == (0, 1)


def test_a_single_task_is_not_told_twice() -> None:
    trajectories = played({"count": TASKS["count"]})
    metrics = rollout_metrics(trajectories, assign_advantages(trajectories))
    assert not [name for name in metrics if "count" in name]
