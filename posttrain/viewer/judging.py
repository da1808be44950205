"""What the judges of a run cost, and how far they agree with its rules."""

from dataclasses import dataclass

from posttrain.run.agreement import COUNTS, Confusion, read_figures
from posttrain.run.judging import read_spending
from posttrain.viewer.records import RunContents


@dataclass(frozen=True)
class Agreement:
    """A judge beside a rule, over the steps of a stage.

    Attributes:
        stage, task, judge, rule: Names as recorded.
        counts: Episodes by who called them good.
        correlation: Mean of the steps' correlations, weighted by their episodes; None where none has one.
    """

    stage: str
    task: str
    judge: str
    rule: str
    counts: Confusion
    correlation: float | None


def agreements(run: RunContents) -> list[Agreement]:
    """Add up what a run's steps say of its judges and rules."""
    found: dict[tuple[str, str, str, str], list[tuple[Confusion, float | None]]] = {}
    for stage, steps in run.metrics.items():
        for row in steps.values():
            for (task, judge, rule), told in read_figures(row.figures).items():
                counts = Confusion(**{name: max(0.0, told.get(name, 0.0)) for name in COUNTS})
                found.setdefault((stage, task, judge, rule), []).append((counts, told.get("correlation")))
    return [
        Agreement(*place, sum((counts for counts, _ in steps), Confusion()), _mean(steps))
        for place, steps in found.items()
    ]


def _mean(steps: list[tuple[Confusion, float | None]]) -> float | None:
    known = [(counts.total, value) for counts, value in steps if value is not None]
    total = sum(weight for weight, _ in known)
    return sum(weight * value for weight, value in known) / total if total else None


def spending(run: RunContents) -> str:
    """Return in words what the judges of a run were asked and cost; "" where there were none."""
    spent = read_spending(run.path)
    if not spent:
        return ""
    told = [f"{spent.get('calls', 0):,.0f} calls"]
    told += [f"{spent['cached']:,.0f} verdicts known before"] if spent.get("cached") else []
    if spent.get("input_tokens"):
        told.append(f"{spent['input_tokens']:,.0f} + {spent.get('output_tokens', 0):,.0f} tokens")
    told += [f"cost {spent['cost']:,.4g}"] if spent.get("cost") else []
    return ", ".join(told)
