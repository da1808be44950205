"""`comparison-<name>.html`: the cells of a comparison beside each other, and a picture and table of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from posttrain.evaluation.table import p_text, signed
from posttrain.files.durable import write_atomic
from posttrain.run import metric_names as metric
from posttrain.viewer.charts import HEIGHT, WIDTH, Chart
from posttrain.viewer.comparison import Comparison, Difference, comparisons, heading
from posttrain.viewer.comparison_picture import READING, cells_of, curve, headings, picture, table, told
from posttrain.viewer.page import page, write_page
from posttrain.viewer.records import RunContents
from posttrain.viewer.telling import RULES, signs
from posttrain.viewer.wording import label, visible


@dataclass(frozen=True)
class Figure:
    """A figure that is drawn by step.

    Attributes:
        title, caption: What it is, and what to look for.
        name: Its metric.
        log: Whether its axis is logarithmic.
    """

    title: str
    caption: str
    name: str
    log: bool = False


FIGURES = (
    Figure("Reward", "Mean over a step's episodes.", metric.REWARD_MEAN),
    Figure("Entropy", "How undecided the policy is; at zero it has stopped exploring.", metric.ENTROPY),
    Figure(
        "KL divergence of an update",
        "How far the policy moves from the first mini-batch of a step to the last.",
        metric.KL_OLD_NEW,
        log=True,
    ),
    Figure(
        "Clip fraction",
        "Share of the tokens whose ratio, or whose sequence's in GSPO, is clipped. SAPO clips nothing.",
        metric.CLIP_FRACTION,
    ),
    Figure(
        "SAPO's gate, good episodes",
        "The 5th percentile of a token's weight. 1 is on-policy; what falls is closed.",
        f"{metric.GATE_POSITIVE}_{metric.QUANTILES[0]}",
    ),
    Figure(
        "SAPO's gate, bad episodes",
        "The same of episodes with a negative advantage.",
        f"{metric.GATE_NEGATIVE}_{metric.QUANTILES[0]}",
    ),
    Figure(
        "Drift",
        "KL divergence of the weights that learn from those that sampled, where tokens are older.",
        metric.DRIFT_KL,
        log=True,
    ),
    Figure("Gradient norm", "Before clipping; spikes come before trouble.", metric.GRAD_NORM),
)


def write_comparisons(run: RunContents) -> list[tuple[str, str]]:
    """Write a page, a picture and a table for every comparison of a run.

    Args:
        run: Its contents.

    Returns:
        Name and page of each, relative to the run's directory.

    Raises:
        DiskFull: If there is no space.
    """
    written: list[tuple[str, str]] = []
    for comparison in comparisons(run):
        file = f"comparison-{comparison.name}"
        drawn = picture(comparison)
        write_page(run.path / f"{file}.html", _page(run, comparison, drawn))
        write_atomic(run.path / f"{file}.svg", drawn)
        write_atomic(run.path / f"{file}.md", table(comparison, f"{file}.svg"))
        written.append((comparison.name, f"./{file}.html"))
    return written


def without_cells(run: RunContents) -> RunContents:
    """Return a run without the cells of its comparisons, which have pages of their own."""
    cells = {stage.name for stage in run.record.stages if stage.comparison}
    if not cells:
        return run
    stages = tuple(stage for stage in run.record.stages if not stage.comparison)
    return replace(
        run,
        record=replace(run.record, stages=stages),
        metrics={stage: steps for stage, steps in run.metrics.items() if stage not in cells},
        evaluation=[row for row in run.evaluation if row.stage not in cells],
        on_the_way=[row for row in run.on_the_way if row.stage not in cells],
    )


def _page(run: RunContents, comparison: Comparison, drawn: str) -> str:
    task = comparison.tasks[0] if comparison.tasks else ""
    rows = [
        (comparison.hue(each), [cell.replace("**", "") for cell in cells_of(comparison, each, task)])
        for each in comparison.settings
    ]
    figures = [*FIGURES[:1], *_own_figures(comparison), *FIGURES[1:]]
    return page(
        "comparison.html.jinja",
        run=visible(run.record.name or run.path.resolve().name),
        name=visible(label(comparison.name)),
        told=told(comparison),
        start=comparison.start.get(task),
        origin=label(comparison.origin),
        picture=Markup(drawn),  # noqa: S704 (made by a template that escapes)
        head=headings(comparison, task),
        reading=READING,
        rows=rows,
        pairs=[(label(task), [*_pairs(comparison, task)]) for task in comparison.tasks],
        signs=signs(comparison),
        rules=RULES,
        curves=[(figure, charts) for figure in figures if (charts := _charts(comparison, figure))],
        chart_size=(WIDTH, HEIGHT),
        seeds=comparison.seeds,
    )


def _own_figures(comparison: Comparison) -> list[Figure]:
    """Return the figures of the rewards and, where tools were called, of the calls."""
    names = {
        name
        for setting in comparison.settings
        for cell in setting.cells
        for row in cell.steps.values()
        for name, value in row.figures.items()
        if name.startswith(metric.REWARD) or (name == metric.EPISODE_TOOL_CALLS and value)
    }
    rewards = sorted(names - {metric.REWARD_MEAN, metric.REWARD_ERRORS, metric.EPISODE_TOOL_CALLS})
    found = [
        Figure(label(name.removeprefix(metric.REWARD)), "Mean of this reward, unweighted and ungated.", name)
        for name in (rewards if rewards[1:] else [])
    ]
    if metric.EPISODE_TOOL_CALLS in names:
        caption = "Mean over a step's episodes of the calls that returned an image."
        found.append(Figure("Tool calls", caption, metric.EPISODE_TOOL_CALLS))
    return found


def _charts(comparison: Comparison, figure: Figure) -> list[Chart]:
    found = (
        curve(comparison, settings, figure.name, (title or figure.title, ""), figure.log)
        for title, settings in comparison.panels
    )
    return [chart for chart in found if chart is not None]


def _pairs(comparison: Comparison, task: str) -> Sequence[dict[str, object]]:
    """Return the rows of paired comparisons on a task."""
    return [_pair(each) for each in comparison.differences(task)]


def _pair(difference: Difference) -> dict[str, object]:
    pair = difference.pair
    seeds = ", ".join(signed(100 * value) for value in difference.seeds.values())
    return {
        "what": heading(difference.key),
        "common": difference.common,
        "first": difference.first.removeprefix(f"{heading(difference.key)} "),
        "second": difference.second.removeprefix(f"{heading(difference.key)} "),
        "points": signed(100 * pair.difference),
        "interval": f"{signed(100 * pair.low)} – {signed(100 * pair.high)}",
        "p": p_text(pair.p),
        "apart": pair.low > 0 or pair.high < 0,
        "up": pair.difference > 0,
        "gained": len(pair.gained),
        "lost": len(pair.lost),
        "seeds": seeds if len(difference.seeds) > 1 else "",
    }
