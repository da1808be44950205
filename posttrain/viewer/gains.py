"""What each stage was for: the figure that it was meant to raise, before it and after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.viewer.records import RunRecord, number, stage_name
from posttrain.viewer.summary import Result


@dataclass(frozen=True)
class Funnel:
    """What a stage's curation kept.

    Attributes:
        kept, read: Rows.
        page: Its page, relative to the report.
    """

    kept: int
    read: int
    page: str


@dataclass(frozen=True)
class Gain:
    """A stage and its own metric.

    Attributes:
        stage: Its name.
        origin: Of the stage that it started from.
        result: Its metric after it, and with `before` what it was; None while it is not measured.
        funnel: Of the data that it learned from, where they were curated.
    """

    stage: str
    origin: str
    result: Result | None
    funnel: Funnel | None


def gains(record: RunRecord, tasks: Sequence[Sequence[Result]]) -> list[Gain]:
    """The stages of a run that name a metric or curate their data, in order."""
    found = []
    for stage in record.stages:
        name, metric = stage_name(stage), stage.get("metric")
        funnel = _funnel(record, name)
        if metric is None and funnel is None:
            continue
        measured = (
            result for task in tasks for result in task if (result.stage, result.task) == (name, str(metric))
        )
        found.append(Gain(name, record.origins.get(name, ""), next(measured, None), funnel))
    return found


def _funnel(record: RunRecord, stage: str) -> Funnel | None:
    funnel: dict[str, Any] = record.funnels.get(stage, {})
    kept, read = number(funnel.get("kept")), number(funnel.get("read"))
    if kept is None or read is None:
        return None
    return Funnel(int(kept), int(read), f"{stage}/curation/curation.html")
