"""The sentence of advice that follows from who waited for whom."""

import pytest

from posttrain.run.rows import MetricsRow
from posttrain.viewer.advice import pacing_advice


def steps(learner_wait: float, engine_wait: float, count: int = 10) -> dict[int, MetricsRow]:
    """A stage of steps of 10 seconds; at its ends everybody waits, as always."""
    ends = {1: (9.0, 0.0), count: (0.0, 9.0), count - 1: (0.0, 9.0)}
    rows = {}
    for step in range(1, count + 1):
        learner, engine = ends.get(step, (learner_wait, engine_wait))
        figures: dict[str, float | None] = {
            "time/step": 10.0,
            "time/learner_wait": learner,
            "time/engine_wait": engine,
        }
        rows[step] = MetricsRow("rl", step, None, figures)
    return rows


@pytest.mark.parametrize(
    ("learner_wait", "engine_wait", "advice"),
    [
        (4.0, 0.1, "Learners waited 40 % of the time for episodes, engines 1 % for permission to start more:"
         " add engines (rollout.actors)"),
        (0.2, 5.0, "engines 50 % for permission to start more: add learners (num_workers)"),
        (1.6, 7.0, "add learners"),
        (3.0, 3.0, "raise rollout.max_staleness to 3"),
        (0.5, 0.5, "both are busy"),
    ],
)  # fmt: skip
def test_who_waits_decides_the_advice(learner_wait: float, engine_wait: float, advice: str) -> None:
    assert advice in pacing_advice(steps(learner_wait, engine_wait), max_staleness=2)


def test_in_turns_both_wait_by_design() -> None:
    told = pacing_advice(steps(6.0, 4.0), max_staleness=0)
    assert told.startswith("Engines and learners took turns: learners waited 47 % of the time")
    assert "rollout.max_staleness: 1" in told


def test_nothing_is_said_where_nothing_was_measured() -> None:
    assert pacing_advice({}, 0) == ""
    assert pacing_advice({1: MetricsRow("rl", 1, None, {"time/step": 2.0})}, 2) == ""
