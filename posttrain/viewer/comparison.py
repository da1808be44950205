"""What a run's comparison came to: its settings, the cells of each, their accuracies, and pairs of them.

A setting is a combination of what was varied but the seed; its cells differ by the seed alone.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from posttrain.config.comparison import cell_label
from posttrain.evaluation.outcomes import Outcomes, OutcomesError, episodes_file, pooled, read_outcomes
from posttrain.evaluation.paired import Paired, compare
from posttrain.evaluation.shares import mean_share
from posttrain.run.estimates import Estimate
from posttrain.run.record import StageRecord
from posttrain.run.rows import EvaluationRow, MetricsRow
from posttrain.viewer.records import RunContents
from posttrain.viewer.wording import label

SEED = "seed"
#: A run's last third of steps is what its figures are told of.
TAIL = 3


@dataclass(frozen=True)
class CellResult:
    """One stage of a comparison.

    Attributes:
        stage: Its name.
        seed: As text; "" where seeds were not varied.
        steps: Its figures by step.
        accuracies: Its evaluation by task.
    """

    stage: str
    seed: str
    steps: Mapping[int, MetricsRow]
    accuracies: Mapping[str, EvaluationRow]

    def points(self, metric: str) -> list[tuple[float, float]]:
        """Return a figure by step."""
        found = ((step, row.figures.get(metric)) for step, row in self.steps.items())
        return [(float(step), value) for step, value in found if value is not None]

    def late(self, metric: str) -> float | None:
        """Return a figure's mean over the last third of the steps; None where it has none."""
        values = [value for _, value in self.points(metric)]
        return fmean(values[-max(1, len(values) // TAIL) :]) if values else None

    def early(self, metric: str) -> float | None:
        """Return a figure's mean over the first third of the steps."""
        values = [value for _, value in self.points(metric)]
        return fmean(values[: max(1, len(values) // TAIL)]) if values else None


@dataclass
class Setting:
    """A combination of what was varied, but for the seed.

    Attributes:
        values: Label of each varied setting, by its key.
        origin: Name of the stage that its cells started from.
        cells: Its stages that have begun.
        planned: Number of its stages.
    """

    values: dict[str, str]
    origin: str = ""
    cells: list[CellResult] = field(default_factory=list)
    planned: int = 0

    @property
    def name(self) -> str:
        """Its labels in one line."""
        return ", ".join(self.values.values()) or "as configured"

    def late(self, metric: str) -> float | None:
        """Return a figure's mean over the last third of the steps and the seeds."""
        values = [value for cell in self.cells if (value := cell.late(metric)) is not None]
        return fmean(values) if values else None

    def mean(self, metric: str) -> float | None:
        """Return a figure's mean over all steps and seeds."""
        values = [value for cell in self.cells for _, value in cell.points(metric)]
        return fmean(values) if values else None

    def measured(self, task: str) -> list[CellResult]:
        """Return the cells that were measured on a task."""
        return [cell for cell in self.cells if task in cell.accuracies]


@dataclass(frozen=True)
class Difference:
    """Two settings that differ in one thing, on the same prompts.

    Attributes:
        key: What they differ in.
        common: What they have in common.
        first, second: Labels of the two.
        pair: The comparison, all seeds together.
        seeds: By seed, the difference of the accuracies.
    """

    key: str
    common: str
    first: str
    second: str
    pair: Paired
    seeds: dict[str, float]


@dataclass
class Comparison:
    """A comparison of a run.

    Attributes:
        name: Of the stage that varied settings.
        origin: Name of the stage that the first setting's cells started from; variants may have others.
        labels: By key of what was varied (but for the seed), its labels in order.
        seeds: Labels of the seeds; empty where they were not varied.
        settings: In the order in which they run.
        tasks: What was measured after them.
        start: The evaluation of the checkpoint that all started from, by task.
        outcomes: By stage and task, what became of every prompt, where it is recorded.
    """

    name: str
    origin: str
    labels: dict[str, list[str]]
    seeds: list[str]
    settings: list[Setting]
    tasks: list[str]
    start: dict[str, EvaluationRow]
    outcomes: dict[tuple[str, str], Outcomes]
    _accuracies: dict[tuple[str, str], Estimate | None] = field(default_factory=dict)

    @property
    def colour(self) -> str:
        """Key of the setting that is told by colours: the first whose values are words, else the first."""
        worded = (key for key, labels in self.labels.items() if not any(map(str.isdigit, "".join(labels))))
        return next(worded, next(iter(self.labels), ""))

    @property
    def panels(self) -> list[tuple[str, list[Setting]]]:
        """Settings by what they have in common but for the colour."""
        found: dict[str, list[Setting]] = {}
        for setting in self.settings:
            rest = self.told_apart(setting.values, self.colour)
            found.setdefault(rest, []).append(setting)
        return list(found.items())

    def told_apart(self, values: Mapping[str, str], but: str) -> str:
        """Write values in one line, without those that all settings have and one other key."""
        return ", ".join(value for key, value in values.items() if key != but and self.labels[key][1:])

    def hue(self, setting: Setting) -> int:
        """Return the number of a setting's colour."""
        return self.labels.get(self.colour, [""]).index(setting.values.get(self.colour, ""))

    def accuracy(self, setting: Setting, task: str) -> Estimate | None:
        """Return the mean over a setting's seeds, with an interval over prompts; None where not measured."""
        key = (setting.name, task)
        if key not in self._accuracies:
            self._accuracies[key] = self._accuracy(setting, task)
        return self._accuracies[key]

    def _accuracy(self, setting: Setting, task: str) -> Estimate | None:
        rows = [cell.accuracies[task] for cell in setting.measured(task)]
        together = self._together([row.stage for row in rows], task)
        if together is not None:
            answers = len(next(iter(together.values())).answers)
            return mean_share([each.right for each in together.values()], answers)
        if len(rows) != 1:
            return None
        (row,) = rows
        if row.accuracy is None or row.low is None or row.high is None:
            return None
        return Estimate(row.accuracy, row.low, row.high, row.n or 0)

    def _together(self, stages: Sequence[str], task: str) -> Outcomes | None:
        """Return the outcomes of stages as those of one; None where they are not recorded, or not alike."""
        known = [self.outcomes.get((stage, task)) for stage in stages]
        outcomes = [each for each in known if each is not None]
        if not outcomes or len(outcomes) < len(known):
            return None
        try:
            return pooled(outcomes)
        except OutcomesError:  # the rows that are measured were changed on the way
            return None

    def from_start(self, setting: Setting, task: str) -> Paired | None:
        """Compare a setting, all seeds together, with the checkpoint that it started from."""
        start = self.outcomes.get((setting.origin, task))
        after = self._together([cell.stage for cell in setting.measured(task)], task)
        return None if start is None or after is None else _compared(start, after)

    def differences(self, task: str) -> Iterator[Difference]:
        """Yield every pair of settings that differ in one thing: its first value, and each other."""
        for key in sorted(self.labels, key=lambda key: key != self.colour):
            for first, second in itertools.product(self.settings, repeat=2):
                common = {k: v for k, v in first.values.items() if k != key}
                others = {k: v for k, v in second.values.items() if k != key}
                if first.values[key] != self.labels[key][0] or first is second or common != others:
                    continue
                found = self._difference(first, second, task)
                if found is not None:
                    told = self.told_apart(common, key)
                    yield Difference(key, told, first.values[key], second.values[key], *found)

    def _difference(
        self, first: Setting, second: Setting, task: str
    ) -> tuple[Paired, dict[str, float]] | None:
        """Compare two settings over the seeds that both have."""
        both = [
            (one, other)
            for one, other in itertools.product(first.measured(task), second.measured(task))
            if one.seed == other.seed
        ]
        before, after = ([pair[side].stage for pair in both] for side in (0, 1))
        first_all, second_all = self._together(before, task), self._together(after, task)
        if first_all is None or second_all is None:
            return None
        pair = _compared(first_all, second_all)
        seeds = {
            one.seed: compare(self.outcomes[one.stage, task], self.outcomes[other.stage, task]).difference
            for one, other in (both if pair is not None else [])
        }
        return None if pair is None else (pair, seeds)


def _compared(first: Outcomes, second: Outcomes) -> Paired | None:
    """Compare outcomes; None where the prompts differ."""
    try:
        return compare(first, second)
    except OutcomesError:
        return None


def comparisons(run: RunContents) -> list[Comparison]:
    """Return the comparisons of a run; those of which nothing has been logged are left out."""
    grouped: dict[str, list[StageRecord]] = {}
    for stage in run.record.stages:
        if stage.comparison:
            grouped.setdefault(stage.comparison, []).append(stage)
    found = [_comparison(run, name, stages) for name, stages in grouped.items()]
    return [each for each in found if any(setting.cells for setting in each.settings)]


def _comparison(run: RunContents, name: str, stages: Sequence[StageRecord]) -> Comparison:
    labels: dict[str, list[str]] = {}
    seeds: list[str] = []
    settings: dict[tuple[str, ...], Setting] = {}
    rows: dict[str, dict[str, EvaluationRow]] = {}
    for row in run.evaluation:
        rows.setdefault(row.stage, {})[row.task] = row
    for stage in stages:
        values = {key: _label(key, value) for key, value in stage.settings.items()}
        seed = values.pop(SEED, "")
        for key, value in values.items():
            if value not in labels.setdefault(key, []):
                labels[key].append(value)
        if seed and seed not in seeds:
            seeds.append(seed)
        setting = settings.setdefault(tuple(values.values()), Setting(values, stage.origin or ""))
        setting.planned += 1
        if stage.name in run.metrics:
            cell = CellResult(stage.name, seed, run.metrics[stage.name], rows.get(stage.name, {}))
            setting.cells.append(cell)
    tasks = list(dict.fromkeys(task for stage in stages for task in rows.get(stage.name, {})))
    origin = stages[0].origin or ""
    origins = dict.fromkeys(stage.origin or "" for stage in stages)
    outcomes = _outcomes(run, [*origins, *(stage.name for stage in stages)], tasks)
    start = rows.get(origin, {})
    return Comparison(name, origin, labels, seeds, [*settings.values()], tasks, start, outcomes)


def heading(key: str) -> str:
    """Return what a varied setting is called: the last word of its key, or of a name what it names."""
    *rest, last = key.split(".")
    return label(rest[-1] if last == "name" and rest else last)


def _label(key: str, value: object) -> str:
    """Write a value as a reader wants it: `SAPO`, `max staleness 2`."""
    last = key.rpartition(".")[2]
    short = cell_label(key, value)  # pyright: ignore[reportArgumentType]
    if short.startswith(last) and short != last:
        short = f"{last} {short.removeprefix(last)}"
    return " ".join(label(word) for word in short.split(" "))


def _outcomes(
    run: RunContents, stages: Sequence[str], tasks: Sequence[str]
) -> dict[tuple[str, str], Outcomes]:
    """Read what became of the prompts; what cannot be read is absent, and counted at the foot of the page."""
    found: dict[tuple[str, str], Outcomes] = {}
    for stage, task in itertools.product(stages, tasks):
        path = episodes_file(run.path, stage, task)
        if not path.is_file():
            continue
        try:
            found[stage, task] = read_outcomes(run.path, run.record, stage, task)
        except OutcomesError as error:
            run.passed_over(path, str(error))
    return found
