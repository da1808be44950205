"""What each stage was for: the figure that it was meant to raise, before it and after it."""

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.run.json_fields import integer
from posttrain.viewer.records import RunContents
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
        stage: The stage's name.
        origin: Name of the stage that it started from, or `base`; "" where it makes a model.
        result: Its metric after it, and with `before` what it was; None while it is not measured.
        funnel: Of the data that it learned from, where they were curated.
    """

    stage: str
    origin: str
    result: Result | None
    funnel: Funnel | None


def gains(run: RunContents, tasks: Sequence[Sequence[Result]]) -> list[Gain]:
    """Return the stages of a run that name a metric or curate their data, in order."""
    found: list[Gain] = []
    for stage in run.record.stages:
        funnel = _funnel(run, stage.name)
        if stage.metric is None and funnel is None:
            continue
        place = (stage.name, stage.metric)
        measured = (result for task in tasks for result in task if (result.stage, result.task) == place)
        found.append(Gain(stage.name, stage.origin or "", next(measured, None), funnel))
    return found


def _funnel(run: RunContents, stage: str) -> Funnel | None:
    funnel = run.funnels.get(stage, {})
    kept, read = integer(funnel.get("kept")), integer(funnel.get("read"))
    if kept is None or read is None:
        return None
    return Funnel(kept, read, f"{stage}/curation/curation.html")
