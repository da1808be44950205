"""Which charts a run's metrics make, and what a reader should look for in each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from posttrain.run import metric_names as metric
from posttrain.run.rows import MetricsRow
from posttrain.viewer.charts import Band, Chart, Series, draw
from posttrain.viewer.records import RunContents
from posttrain.viewer.wording import label, link_to

#: Charts of one stage; a plugin that logs a thousand names must not drown the page.
MAX_CHARTS = 40
#: Lines of one chart.
MAX_LINES = 6
#: What begins the names that evaluations get among a stage's metrics.
EVALUATED = "held_out/"
#: Of the two signs of SAPO's gate, what a reader knows them as.
GATES = {metric.GATE_POSITIVE: "good episodes", metric.GATE_NEGATIVE: "bad episodes"}


@dataclass(frozen=True)
class Panel:
    """A chart by the names of its metrics (with `*`).

    Attributes:
        title, caption: What it shows and what to look for.
        lines, stack: Patterns of the metrics drawn as lines and as stacked areas.
        bands: Beginnings of the names of metrics that come as quantiles `_p05`, `_p50` and `_p95`.
        log, from_zero: How the value axis runs.
        limit: Whether the config's limit for log-prob gaps is drawn.
    """

    title: str
    caption: str
    lines: tuple[str, ...] = ()
    stack: tuple[str, ...] = ()
    bands: tuple[str, ...] = ()
    log: bool = False
    from_zero: bool = False
    limit: bool = False


#: In reading order. A metric belongs to the panel that spells its name, else to the first that matches it.
PANELS = (
    Panel(
        "Reward",
        "Mean over a step's episodes, and every reward by itself.",
        lines=(metric.REWARD_MEAN, metric.REWARD + "*"),
        from_zero=True,
    ),
    Panel(
        "Accuracy",
        "Share that the stage's own checks call right.",
        lines=(metric.ACCURACY + "*",),
        from_zero=True,
    ),
    Panel(
        "Held-out accuracy",
        "Share of held-out samples that are right, before the stage, on the way and at its end.",
        lines=(EVALUATED + "*",),
        from_zero=True,
    ),
    Panel(
        "Tool use",
        "Calls and turns of an episode. A fall to zero calls, or exactly one everywhere, is a known trap.",
        lines=(metric.EPISODE_TOOL_CALLS, metric.EPISODE_TURNS),
        from_zero=True,
    ),
    Panel(
        "Length",
        "Tokens of an episode. Steady growth without reward is padding.",
        lines=(metric.EPISODE_TOKENS,),
        from_zero=True,
    ),
    Panel(
        "Judge and rule",
        "Cohen's kappa of judge and rule: 0 is chance. If it falls, the policy may be fooling the judge.",
        lines=(metric.AGREEMENT_KAPPA + "*",),
    ),
    Panel(
        "Judges",
        "Requests to judges and what they cost, since the run began.",
        lines=(metric.JUDGE_CALLS, metric.JUDGE_CACHED, metric.JUDGE_COST),
        from_zero=True,
    ),
    Panel(
        "Signal that was lost",
        "What taught nothing: groups that scored alike, errors, cut-off episodes; samples too long; updates"
        " that were not finite.",
        lines=(
            *(metric.ADVANTAGE_ZERO_GROUPS, metric.REWARD_ERRORS, metric.EPISODE_TRUNCATED),
            *(metric.DATA_LEFT_OUT, metric.HELD_OUT_LEFT_OUT, metric.UPDATE_SKIPPED),
        ),
        from_zero=True,
    ),
    Panel(
        "Prompts that were replaced",
        "Groups without signal that gave their places to further prompts, and the episodes that they cost.",
        lines=(metric.REFILL + "*",),
        from_zero=True,
    ),
    Panel(
        "Entropy",
        "How undecided the policy is; at zero it has stopped exploring.",
        lines=(metric.ENTROPY,),
        from_zero=True,
    ),
    Panel(
        "Distance from the teacher",
        "On the student's own tokens, in nats: the divergence that is learned, and an estimate of the reverse"
        " KL by the sampled tokens.",
        lines=(metric.DIVERGENCE_TEACHER, metric.KL_TEACHER),
    ),
    Panel(
        "KL divergence",
        "Engine to learner is numerics and stays flat; old to new is how far an update moves.",
        lines=(metric.KL + "*",),
        log=True,
    ),
    Panel(
        "Log-prob gap",
        "Engine against learner on the same tokens, right after a publish. Above the limit they differ.",
        lines=(metric.LOGPROB_GAP_MAX, metric.LOGPROB_GAP + "*"),
        log=True,
        limit=True,
    ),
    Panel(
        "Gap by kind of token",
        "The gap that 1 % of the tokens exceed. If coordinates alone do, an image is seen otherwise.",
        lines=(metric.CLASS_GAP + "*_p99",),
        log=True,
    ),
    Panel(
        "Gate",
        "SAPO's weight of a token, 5th to 95th percentile, apart for good and bad episodes. 1 is on-policy.",
        bands=(metric.GATE_POSITIVE, metric.GATE_NEGATIVE),
    ),
    Panel(
        "Held-out pairs",
        "Share whose chosen reply is the likelier one to the model, and the likelier one than it was.",
        lines=(metric.HELD_OUT_PREFERRED, metric.HELD_OUT_PREFERENCE_ACCURACIES),
        from_zero=True,
    ),
    Panel(
        "Preference",
        "DPO's implicit rewards: how much likelier a reply became. If chosen ones fall too, watch out.",
        lines=(metric.PREFERENCE + "*",),
    ),
    Panel(
        "Held-out preference",
        "The same of pairs that are not trained on.",
        lines=(metric.HELD_OUT_PREFERENCE + "*",),
    ),
    Panel(
        "Loss",
        "Of the stage's own objective; RL's says little about progress.",
        lines=(metric.LOSS, metric.HELD_OUT_LOSS),
    ),
    Panel(
        "Gradient norm",
        "Before clipping; spikes come before trouble.",
        lines=(metric.GRAD_NORM,),
        from_zero=True,
    ),
    Panel("Learning rate", "As scheduled.", lines=(metric.LEARNING_RATE,), from_zero=True),
    Panel(
        "Time",
        "Seconds of a step; its parts, which follow each other, are stacked: the learners wait for episodes,"
        " learn, and publish. Beside them what engines wait for permission to start more.",
        stack=(metric.TIME_LEARNER_WAIT, metric.TIME_LEARNER, metric.TIME_PUBLISH),
        lines=(
            *(metric.TIME_STEP, metric.TIME_ENGINE_WAIT, metric.TIME_ROLLOUT, metric.TIME_REWARD),
            metric.TIME + "*",
        ),
        from_zero=True,
    ),
    Panel(
        "Age of tokens",
        "Versions of the policy between the weights that sampled a token and those that learned from it.",
        lines=(metric.STALENESS_MEAN, metric.STALENESS_MAX),
        from_zero=True,
    ),
    Panel(
        "Share of tokens by age",
        "0 is on-policy.",
        lines=(metric.STALENESS_SHARE + "*",),
        from_zero=True,
    ),
)
SPELT = {name for panel in PANELS for name in (*panel.lines, *panel.stack)}


def stage_charts(run: RunContents, stage: str) -> list[Chart]:
    """Draw the charts of a stage: the panels above in reading order, then whatever else was logged."""
    columns = _columns(run.metrics.get(stage, {})) | _course(run, stage)
    record = next((each for each in run.record.stages if each.name == stage), None)
    limit = record.logprob_tolerance if record else None
    by_task = _by_task(columns, [task.name for task in record.tasks] if record else [])
    charts: list[Chart] = []
    for panel in PANELS:
        stack = _take(columns, panel.stack)
        bands = [band for prefix in panel.bands if (band := _band(columns, prefix))]
        lines = _take(columns, panel.lines)
        if stack and len(stack) < len(panel.stack):
            lines, stack = stack + lines, []
        chart = draw(
            panel.title,
            panel.caption,
            lines[:MAX_LINES],
            bands,
            stack,
            limit=limit if panel.limit else None,
            log=panel.log,
            include=(0.0,) * panel.from_zero,
        )
        if chart:
            charts.append(chart)
        charts += _charts_by_task(panel, by_task)
    charts = [*charts, *_others(columns)][:MAX_CHARTS]
    for chart in charts:
        _link(chart, run.step_files.get(stage, {}))
    return charts


def _link(chart: Chart, files: Mapping[int, str]) -> None:
    """Have each strip of a chart lead to the episodes of the last step that it covers and that has some."""
    before = -math.inf
    for probe in chart.probes:
        covered = [step for step in files if before < step <= probe.step]
        probe.link = link_to(files[max(covered)]) if covered else ""
        before = probe.step


def _columns(steps: Mapping[int, MetricsRow]) -> dict[str, Series]:
    """Turn rows into columns: a series for every metric."""
    columns: dict[str, Series] = {}
    for step, row in steps.items():
        for name, value in row.figures.items():
            if value is not None:
                series = columns.setdefault(name, Series(label(name.rpartition("/")[2]), []))
                series.points.append((step, value))
    return columns


def _course(run: RunContents, stage: str) -> dict[str, Series]:
    """Return the accuracies of each task that was measured on the way, from the stage's origin to its end."""
    tasks = dict.fromkeys(row.task for row in run.on_the_way if row.stage == stage)
    origin = run.record.origins.get(stage)
    found: dict[str, Series] = {}
    for task in tasks:
        points = {
            row.step if row.stage == stage else 0: row.accuracy
            for row in [*run.evaluation, *run.on_the_way]
            if row.task == task and row.stage in (origin, stage) and row.accuracy is not None
        }
        found[EVALUATED + task] = Series(label(task), sorted(points.items()))
    return found


def _by_task(columns: dict[str, Series], tasks: Sequence[str]) -> dict[str, list[Series]]:
    """Remove the figures of single tasks, and return them by the name of the figure."""
    found: dict[str, list[Series]] = {}
    for name in list(columns):
        about, _, rest = name.partition("/")
        task = next((task for task in tasks if rest.startswith(f"{task}/")), None)
        if task is not None:
            series = Series(label(task), columns.pop(name).points)
            found.setdefault(f"{about}/{rest.removeprefix(task + '/')}", []).append(series)
    return found


def _charts_by_task(panel: Panel, by_task: dict[str, list[Series]]) -> Iterator[Chart]:
    """Draw the figures of single tasks that a panel is about: a chart for a figure, a line for a task."""
    names = [name for name in by_task if any(fnmatchcase(name, pattern) for pattern in panel.lines)]
    for name in names:
        title = f"{panel.title} by task: {label(name.partition('/')[2])}"
        chart = draw(title, "", by_task.pop(name)[:MAX_LINES], include=(0.0,) * panel.from_zero)
        if chart:
            yield chart


def _take(columns: dict[str, Series], patterns: Sequence[str]) -> list[Series]:
    """Remove and return the metrics that match, pattern by pattern."""
    return [
        columns.pop(name)
        for pattern in patterns
        for name in list(columns)
        if name == pattern or (name not in SPELT and fnmatchcase(name, pattern))
    ]


def _band(columns: dict[str, Series], prefix: str) -> Band | None:
    """Remove and return the quantiles of a metric over the steps that have all three, or None."""
    names = [f"{prefix}_{quantile}" for quantile in metric.QUANTILES]
    if any(name not in columns for name in names):
        return None
    taken = [columns.pop(name) for name in names]
    shared = set.intersection(*({step for step, _ in series.points} for series in taken))
    kind = label(GATES.get(prefix, prefix))
    low, middle, high = (Series(kind, [p for p in series.points if p[0] in shared]) for series in taken)
    return Band(low, middle, high)


def _others(columns: dict[str, Series]) -> Iterator[Chart]:
    """Draw what no panel names: a chart for every beginning of names, and for every name without one."""
    groups: dict[str, list[Series]] = {}
    for name, series in columns.items():
        groups.setdefault(name.partition("/")[0], []).append(series)
    for title, lines in groups.items():
        chart = draw(label(title).capitalize(), "", lines[:MAX_LINES])
        if chart:
            yield chart
