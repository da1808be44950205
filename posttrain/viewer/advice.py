"""What a stage's two meters say: who of engines and learners waits for the others, and what to do then."""

from collections.abc import Mapping, Sequence

from posttrain.run.metric_names import TIME_ENGINE_WAIT, TIME_LEARNER_WAIT, TIME_STEP
from posttrain.run.rows import MetricsRow
from posttrain.viewer.wording import percent

#: Share of the time that is worth a change of the settings.
MUCH = 0.15
METERS = (TIME_STEP, TIME_LEARNER_WAIT, TIME_ENGINE_WAIT)


def pacing_advice(steps: Mapping[int, MetricsRow], max_staleness: int) -> str:
    """Return one sentence on who waited for whom in a stage, with advice; "" where nothing is known of it.

    Args:
        steps: The stage's metrics by step, ascending.
        max_staleness: The stage's.
    """
    measured = [figures for row in steps.values() if (figures := _figures(row))]
    # At the start learners wait for the first episodes whatever the settings, at the end engines for nothing.
    middle = measured[1 : len(measured) - max_staleness] or measured
    total = sum(step for step, _, _ in middle)
    if total <= 0:
        return ""
    learners = sum(waited for _, waited, _ in middle) / total
    engines = sum(waited for _, _, waited in middle) / total
    told = (
        f"learners waited {percent(min(1.0, learners))} of the time for episodes, engines"
        f" {percent(min(1.0, engines))} for permission to start more"
    )
    if not max_staleness:
        return (
            f"Engines and learners took turns: {told}. Where they have processors of their own,"
            " rollout.max_staleness: 1 lets them work at the same time."
        )
    return f"{told[0].upper()}{told[1:]}: {_advice(learners, engines, max_staleness)}."


def _advice(learners: float, engines: float, max_staleness: int) -> str:
    """Say what to do about shares of time that learners and engines waited."""
    if learners >= MUCH and engines >= MUCH:
        return (
            "episodes differ much in length, and a few of them keep everybody waiting; raise"
            f" rollout.max_staleness to {max_staleness + 1}, or shorten them"
        )
    if learners >= MUCH:
        return "add engines (rollout.actors), or give them some of the learners' processors"
    if engines >= MUCH:
        return "add learners (num_workers), or give them some of the engines' processors"
    return "both are busy"


def _figures(row: MetricsRow) -> Sequence[float] | None:
    """Return a step's seconds and both meters; None where one of them is missing."""
    found = [row.figures.get(name) for name in METERS]
    return None if None in found else [value for value in found if value is not None]
