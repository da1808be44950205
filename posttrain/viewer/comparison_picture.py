"""A comparison as one picture (SVG) and one table (Markdown), for a README."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from posttrain.run import metric_names as metric
from posttrain.run.estimates import Estimate
from posttrain.viewer import by_need
from posttrain.viewer.charts import HEIGHT, WIDTH, Band, Chart, Scale, Series, draw, value_scale, value_ticks
from posttrain.viewer.comparison import Comparison, Setting, heading
from posttrain.viewer.page import environment
from posttrain.viewer.wording import label

#: Between the lines of an accuracy panel.
STEP = 30.0
#: How the picture is read.
READING = (
    "Lines are means over seeds, with a band from the lowest seed to the highest; whiskers are 95 % "
    "intervals over prompts, rings are single seeds"
)


@dataclass(frozen=True)
class Dots:
    """A line of an accuracy panel.

    Attributes:
        label: The setting's.
        colour: Its number.
        y: Where the line is.
        low, mean, high: Places of the accuracy and its interval; None where it has none.
        seeds: Place of every seed.
        text: The accuracy.
    """

    label: str
    colour: int
    y: float
    low: float | None
    mean: float | None
    high: float | None
    seeds: list[float]
    text: str


@dataclass(frozen=True)
class Panel:
    """The settings that have all in common but the colour.

    Attributes:
        title: What they have in common.
        curves: Charts of figures by step.
        dots: Accuracies.
        ticks: (place, text) of the accuracies' axis.
        start: Place of the accuracy that all started from.
    """

    title: str
    curves: list[Chart]
    dots: list[Dots]
    ticks: list[tuple[float, str]]
    start: float | None


def curve(
    comparison: Comparison, settings: Sequence[Setting], name: str, words: tuple[str, str], log: bool = False
) -> Chart | None:
    """Draw a figure by step: for each setting the mean of its seeds, with a band from lowest to highest.

    Args:
        comparison: All of it, for the scale that its panels share.
        settings: Those of the panel.
        name: The figure's metric.
        words: Title and caption.
        log: Whether values are logarithmic.
    """
    everything = [band for setting in comparison.settings if (band := _band(comparison, setting, name))]
    values = [y for band in everything for each in (band.low, band.high) for _, y in each.points]
    around = (min(values), max(values)) if values else ()
    bands: list[Band] = []
    for colour in range(max(1, len(comparison.labels.get(comparison.colour, [])))):
        found = [_band(comparison, each, name) for each in settings if comparison.hue(each) == colour]
        empty = Series(comparison.labels.get(comparison.colour, [""])[colour], [])
        bands.append(found[0] if found and found[0] else Band(empty, empty, empty))
    return draw(*words, bands=bands, include=around, log=log)


def _band(comparison: Comparison, setting: Setting, name: str) -> Band | None:
    points: dict[float, list[float]] = {}
    for cell in setting.cells:
        for step, value in cell.points(name):
            points.setdefault(step, []).append(value)
    if not points:
        return None
    title = setting.values.get(comparison.colour, "")
    low, mean, high = (
        Series(title, [(step, of(values)) for step, values in sorted(points.items())])
        for of in (min, fmean, max)
    )
    return Band(low, mean, high)


def picture(comparison: Comparison) -> str:
    """Return the comparison as SVG: for each panel reward and entropy by step, and the accuracies at last."""
    task = comparison.tasks[0] if comparison.tasks else ""
    scale = _accuracy_scale(comparison, task)
    panels = [_panel(comparison, title, settings, task, scale) for title, settings in comparison.panels]
    columns = [chart.title for chart in panels[0].curves] if panels else []
    hues = comparison.labels.get(comparison.colour, [])
    return environment().get_template("comparison.svg.jinja").render(
        panels=panels,
        columns=[*columns, f"{label(task)}: accuracy after training"] if task else columns,
        hues=hues,
        size=(WIDTH, max(HEIGHT, STEP * len(hues))),
        has_start=any(panel.start is not None for panel in panels),
        notes=(f"{told(comparison)}.", f"{READING}."),
        start_name=label(comparison.origin),
    )  # fmt: skip


def told(comparison: Comparison) -> str:
    """Tell in a line what a picture or table shows, and how much of the comparison is there."""
    tasks, settings = comparison.tasks, comparison.settings
    done = sum(len(setting.measured(tasks[0])) for setting in settings if tasks)
    planned = sum(setting.planned for setting in settings)
    count = max(1, len(comparison.seeds))
    measured = (comparison.accuracy(setting, task) for setting in settings for task in tasks)
    steps = max((max(cell.steps, default=0) for setting in settings for cell in setting.cells), default=0)
    prompts = next((estimate.n for estimate in measured if estimate is not None), 0)
    missing = "" if done == planned else f"; {done} of {planned} stages are measured so far"
    return (
        f"{len(settings)} settings of {steps} steps, {count} seed{'s' * (count > 1)}, "
        f"{prompts} held-out prompts{missing}"
    )


def _accuracy_scale(comparison: Comparison, task: str) -> Scale:
    found = [each for setting in comparison.settings if (each := comparison.accuracy(setting, task))]
    values = [value for each in found for value in (each.low, each.high)]
    start = comparison.start.get(task)
    values += [start.accuracy] if start is not None and start.accuracy is not None else []
    flipped = value_scale(values or [0.0, 1.0], log=False, from_zero=False)
    return Scale(max(0.0, flipped.low), min(1.0, flipped.high), WIDTH)


def _panel(comparison: Comparison, title: str, settings: Sequence[Setting], task: str, scale: Scale) -> Panel:
    curves = [
        curve(comparison, settings, metric.REWARD_MEAN, ("Reward, by step", "")),
        curve(comparison, settings, metric.ENTROPY, ("Entropy, by step", "")),
    ]
    start = comparison.start.get(task)
    return Panel(
        title=title,
        curves=[chart for chart in curves if chart is not None],
        dots=[_dots(comparison, setting, task, scale) for setting in settings],
        ticks=[(scale(tick), f"{100 * tick:g} %") for tick in value_ticks(scale)],
        start=scale(start.accuracy) if start is not None and start.accuracy is not None else None,
    )


def _dots(comparison: Comparison, setting: Setting, task: str, scale: Scale) -> Dots:
    estimate = comparison.accuracy(setting, task)
    hue = comparison.hue(setting)
    rows = [cell.accuracies[task] for cell in setting.measured(task)]
    return Dots(
        label=setting.values.get(comparison.colour, setting.name),
        colour=hue,
        y=STEP * (hue + 0.5),
        low=None if estimate is None else scale(estimate.low),
        mean=None if estimate is None else scale(estimate.value),
        high=None if estimate is None else scale(estimate.high),
        seeds=[scale(row.accuracy) for row in rows if row.accuracy is not None] if rows[1:] else [],
        text="" if estimate is None else f"{100 * estimate.value:.1f} %",
    )


def table(comparison: Comparison, image: str) -> str:
    """Return the comparison as a Markdown table under its picture.

    Args:
        comparison: The comparison.
        image: Where the picture is, from the file that shows the table.
    """
    task = comparison.tasks[0] if comparison.tasks else ""
    start = comparison.start.get(task)
    head = headings(comparison, task)
    lines = [f"![Comparison]({image})", "", f"{told(comparison)}. {READING}."]
    if start is not None and start.accuracy is not None:
        lines[-1] += f" All start from {label(comparison.origin)}, at {100 * start.accuracy:.1f} %."
    lines += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for setting in comparison.settings:
        lines.append("| " + " | ".join(cells_of(comparison, setting, task)) + " |")
    return "\n".join(lines) + "\n"


def headings(comparison: Comparison, task: str) -> list[str]:
    """Return the headings of a table of settings."""
    varied = [heading(key) for key in comparison.labels]
    measured = [f"{label(task)}, 95 % interval", "lowest – highest seed", "from the start"]
    others = [label(other) for other in comparison.tasks if other != task]
    needed = by_need.headings(comparison, task)
    return [*varied, "seeds", *measured, *others, *needed, "reward", "entropy", "clipped"]


def cells_of(comparison: Comparison, setting: Setting, task: str) -> list[str]:
    """Return a setting's line of a table, under `headings`."""
    estimate, change = comparison.accuracy(setting, task), comparison.from_start(setting, task)
    shares = [s for cell in setting.measured(task) if (s := cell.accuracies[task].accuracy) is not None]
    return [
        *(value.removeprefix(f"{heading(key)} ") for key, value in setting.values.items()),
        f"{len(setting.measured(task))} of {setting.planned}",
        "–" if estimate is None else f"**{100 * estimate.value:.1f} %** {_range(estimate)}",
        "–" if len(shares) < 2 else f"{100 * min(shares):.1f} – {100 * max(shares):.1f} %",
        "–" if change is None else f"{100 * change.difference:+.1f}".replace("-", "−"),
        *(_accuracy(comparison.accuracy(setting, other)) for other in comparison.tasks if other != task),
        *by_need.cells(comparison, setting, task),
        *(_figure(setting.late(name)) for name in (metric.REWARD_MEAN, metric.ENTROPY)),
        "–" if (clipped := setting.mean(metric.CLIP_FRACTION)) is None else f"{100 * clipped:.1f} %",
    ]


def _accuracy(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{100 * estimate.value:.1f} % {_range(estimate)}"


def _range(estimate: Estimate) -> str:
    return f"({100 * estimate.low:.1f} – {100 * estimate.high:.1f})"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
