"""Which charts a run's metrics make, and what a reader should look for in each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from posttrain.viewer.charts import Band, Chart, Series, draw
from posttrain.viewer.records import RunRecord, number, stage_name
from posttrain.viewer.wording import label

#: Charts of one stage; a plugin that logs a thousand names must not drown the page.
MAX_CHARTS = 40
#: Lines of one chart.
MAX_LINES = 6
LOGPROB_GAP = "logprob_gap/max"
#: What begins the names of held-out accuracies among a stage's metrics.
HELD_OUT = "held_out/"


@dataclass(frozen=True)
class Panel:
    """A chart by the names of its metrics (with `*`).

    Attributes:
        title, caption: What it shows and what to look for.
        lines, stack: Patterns of the metrics drawn as lines and as stacked areas.
        bands: Prefixes of metrics that come as quantiles `_p05`, `_p50` and `_p95`.
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
        lines=("reward/mean", "reward/*"),
        from_zero=True,
    ),
    Panel("Accuracy", "Share that the stage's own checks call right.", lines=("accuracy/*",), from_zero=True),
    Panel(
        "Held-out accuracy",
        "Share of held-out samples that are right, before the stage, on the way and at its end.",
        lines=(HELD_OUT + "*",),
        from_zero=True,
    ),
    Panel(
        "Tool use",
        "Calls and turns of an episode. A fall to zero calls, or exactly one everywhere, is a known trap.",
        lines=("episode/tool_calls", "episode/turns"),
        from_zero=True,
    ),
    Panel(
        "Length",
        "Tokens of an episode. Steady growth without reward is padding.",
        lines=("episode/tokens",),
        from_zero=True,
    ),
    Panel(
        "Signal that was lost",
        "What taught nothing: groups that scored alike, errors, cut-off episodes; samples too long; updates"
        " that were not finite.",
        lines=(
            *("advantage/zero_groups", "reward/errors", "episode/truncated"),
            *("data/left_out", "eval_left_out", "update/skipped"),
        ),
        from_zero=True,
    ),
    Panel(
        "Entropy",
        "How undecided the policy is; at zero it has stopped exploring.",
        lines=("entropy",),
        from_zero=True,
    ),
    Panel(
        "KL divergence",
        "Engine to learner is numerics and stays flat; old to new is how far an update moves.",
        lines=("kl/*",),
        log=True,
    ),
    Panel(
        "Log-prob gap",
        "Engine against learner on the same tokens, right after a publish. Above the limit they differ.",
        lines=(LOGPROB_GAP, "logprob_gap/*"),
        log=True,
        limit=True,
    ),
    Panel(
        "Gate",
        "SAPO's weight of a token, 5th to 95th percentile, apart for good and bad episodes. 1 is on-policy.",
        bands=("gate/pos", "gate/neg"),
    ),
    Panel(
        "Held-out pairs",
        "Share whose chosen reply is the likelier one to the model, and the likelier one than it was.",
        lines=("eval_preferred", "eval_rewards/accuracies"),
        from_zero=True,
    ),
    Panel(
        "Preference",
        "DPO's implicit rewards: how much likelier a reply became. If chosen ones fall too, watch out.",
        lines=("rewards/*",),
    ),
    Panel("Held-out preference", "The same of pairs that are not trained on.", lines=("eval_rewards/*",)),
    Panel(
        "Loss", "Of the stage's own objective; RL's says little about progress.", lines=("loss", "eval_loss")
    ),
    Panel(
        "Gradient norm", "Before clipping; spikes come before trouble.", lines=("grad_norm",), from_zero=True
    ),
    Panel("Learning rate", "As scheduled.", lines=("learning_rate",), from_zero=True),
    Panel(
        "Time",
        "Seconds of a step; its parts, where they follow each other, are stacked.",
        stack=("time/rollout", "time/learner", "time/publish"),
        lines=("time/step", "time/reward", "time/*"),
        from_zero=True,
    ),
)
SPELT = {name for panel in PANELS for name in (*panel.lines, *panel.stack)}
#: What each row carries that is not a measurement.
NOT_METRICS = ("step", "time")


def stage_charts(record: RunRecord, stage: str) -> list[Chart]:
    """The charts of a stage: the panels above in reading order, then whatever else was logged."""
    columns = _columns(record.metrics.get(stage, {})) | _course(record, stage)
    limit = _logprob_tolerance(record, stage)
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
            from_zero=panel.from_zero,
        )
        if chart:
            charts.append(chart)
    return [*charts, *_others(columns)][:MAX_CHARTS]


def _columns(steps: Mapping[int, Mapping[str, float]]) -> dict[str, Series]:
    """Rows to columns: a series for every metric."""
    columns: dict[str, Series] = {}
    for step, row in steps.items():
        for name, value in row.items():
            if name not in NOT_METRICS:
                columns.setdefault(name, Series(label(name.rpartition("/")[2]), [])).points.append(
                    (step, value)
                )
    return columns


def _course(record: RunRecord, stage: str) -> dict[str, Series]:
    """The accuracies of each task that was measured on the way, from where the stage began to its end."""
    tasks = dict.fromkeys(str(row.get("task")) for row in record.on_the_way if row.get("stage") == stage)
    origin = record.origins.get(stage)
    found: dict[str, Series] = {}
    for task in tasks:
        points = {
            (number(row.get("step")) or 0.0) if row.get("stage") == stage else 0.0: accuracy
            for row in [*record.evaluation, *record.on_the_way]
            if row.get("task") == task and row.get("stage") in (origin, stage)
            if (accuracy := number(row.get("accuracy"))) is not None
        }
        found[HELD_OUT + task] = Series(label(task), sorted(points.items()))
    return found


def _take(columns: dict[str, Series], patterns: Sequence[str]) -> list[Series]:
    """Remove and return the metrics that match, pattern by pattern."""
    return [
        columns.pop(name)
        for pattern in patterns
        for name in list(columns)
        if name == pattern or (name not in SPELT and fnmatchcase(name, pattern))
    ]


def _band(columns: dict[str, Series], prefix: str) -> Band | None:
    """The quantiles of a metric over the steps that have all three, or None."""
    names = [f"{prefix}_{quantile}" for quantile in ("p05", "p50", "p95")]
    if any(name not in columns for name in names):
        return None
    taken = [columns.pop(name) for name in names]
    shared = set.intersection(*({step for step, _ in series.points} for series in taken))
    kind = label({"pos": "good episodes", "neg": "bad episodes"}.get(prefix.rpartition("/")[2], prefix))
    low, middle, high = (Series(kind, [p for p in series.points if p[0] in shared]) for series in taken)
    return Band(low, middle, high)


def _others(columns: dict[str, Series]) -> Iterator[Chart]:
    """A chart for every prefix that no panel names, and for every name without one."""
    groups: dict[str, list[Series]] = {}
    for name, series in columns.items():
        groups.setdefault(name.partition("/")[0], []).append(series)
    for title, lines in groups.items():
        chart = draw(label(title).capitalize(), "", lines[:MAX_LINES])
        if chart:
            yield chart


def _logprob_tolerance(record: RunRecord, stage: str) -> float | None:
    """The limit that the config sets, where it does."""
    for settings in record.stages:
        if stage_name(settings) == stage:
            return number(settings.get("logprob_tolerance"))
    return None
