"""Geometry of small line charts: numbers in, SVG coordinates and labels out.

Nothing here writes markup; the template does. A chart's plot area is `WIDTH` × `HEIGHT` user units with
the origin at its top left.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 260.0, 110.0
#: Points drawn of one line; longer runs are averaged within equal spans of steps.
MAX_POINTS = 240
#: A line of more points than this is drawn smoothed, with the raw one faintly behind it.
SMOOTH_FROM = 30
#: What a logarithmic chart can show.
LOG_RANGE = (1e-30, 1e30)
#: Spans of a chart that show their values when pointed at.
MAX_PROBES = 48

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A named line: (step, value) in order of steps, values finite.

    Example:
        Series("answer accuracy", [(1, 0.31), (2, 0.35)])
    """

    label: str
    points: Points


@dataclass(frozen=True)
class Band:
    """A range with its middle: three series over the same steps."""

    low: Series
    middle: Series
    high: Series


@dataclass
class Mark:
    """One thing drawn: a line, an area or a legend entry.

    Attributes:
        label: Name in the legend.
        colour: Index into the page's palette.
        line, faint, area: SVG path data, "" where there is none.
        last: The newest value, as text.
    """

    label: str
    colour: int
    line: str = ""
    faint: str = ""
    area: str = ""
    last: str = ""


@dataclass
class Probe:
    """A strip of the chart that tells its values.

    Attributes:
        x, left, width: Where its middle is, and the strip.
        text: The values.
        step: The step that they are of.
        link: What pressing it opens; "" if nothing.
    """

    x: float
    left: float
    width: float
    text: str
    step: float
    link: str = ""


@dataclass
class Chart:
    """A chart that is ready to be drawn.

    Attributes:
        title, caption: What it shows and what to look for.
        marks: In drawing order.
        x_ticks, y_ticks: (position, label).
        limit: (position, label) of a line that should not be crossed.
        probes: Strips with values, left to right.
    """

    title: str
    caption: str
    marks: list[Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    limit: tuple[float, str] | None = None
    probes: list[Probe] = field(default_factory=list)


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map of a value range to 0…length."""

    low: float
    high: float
    length: float
    log: bool = False
    flip: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value; values outside the range land on its edge."""
        low, high, value = (
            math.log10(v) if self.log else v for v in (self.low, self.high, self._clip(value))
        )
        share = 0.5 if high == low else (value - low) / (high - low)
        return round((1 - share if self.flip else share) * self.length, 1)

    def _clip(self, value: float) -> float:
        return min(self.high, max(self.low, value))


def draw(
    title: str,
    caption: str,
    lines: Sequence[Series] = (),
    bands: Sequence[Band] = (),
    stack: Sequence[Series] = (),
    limit: float | None = None,
    log: bool = False,
    include: Sequence[float] = (),
) -> Chart | None:
    """Lay out one chart, or None where there is not a single value.

    Args:
        title: What the chart shows.
        caption: What to look for.
        lines: Lines, each with its own colour.
        bands: Ranges with a middle line; one without points leaves its colour unused.
        stack: Areas on top of each other, below the lines.
        limit: A value to mark as a limit.
        log: Logarithmic values; those outside `LOG_RANGE`, zero among them, are left out.
        include: Values that the value axis includes as well: 0, or those of charts to be compared with.
    """
    low, high = LOG_RANGE if log else (-math.inf, math.inf)
    lines = [Series(s.label, [(x, y) for x, y in s.points if low <= y <= high]) for s in lines]
    lines = [series for series in lines if series.points]
    bands = [_within(band, low, high) for band in bands]
    limit = limit if limit is not None and low <= limit <= high else None
    tops = _stacked(stack)
    spread = [series for band in bands for series in (band.low, band.middle, band.high)]
    steps = [x for series in (*lines, *spread, *tops) for x, _ in series.points]
    values = [y for series in (*lines, *spread, *tops) for _, y in series.points]
    if not values:
        return None
    x = Scale(min(steps), max(steps), WIDTH)
    more = [value for value in (*include, *([] if limit is None else [limit])) if low <= value <= high]
    y = value_scale([*values, *more], log, 0 in include or bool(stack))
    marks = _areas(stack, tops, x, y)
    marks += [_band(band, len(marks) + i, x, y) for i, band in enumerate(bands) if band.middle.points]
    marks += [_line(series, len(marks) + i, x, y, log) for i, series in enumerate(lines)]
    return Chart(
        title,
        caption,
        marks,
        x_ticks=[(x(tick), short(tick)) for tick in _ends(x)],
        y_ticks=[(y(tick), short(tick)) for tick in value_ticks(y)],
        limit=(y(limit), f"limit {short(limit)}") if limit is not None else None,
        probes=_probes([*stack, *(band.middle for band in bands), *lines], x),
    )


def short(value: float) -> str:
    """Write a number in few characters: three significant digits, exponents only where they save room."""
    if value < 0:
        return f"−{short(-value)}"
    if value and not 1e-3 <= value < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if value >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def thin(points: Points) -> Points:
    """Return at most `MAX_POINTS` points: means of equal runs of neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    runs = (points[start : start + size] for start in range(0, len(points), max(size, 1)))
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def smooth(points: Points) -> Points:
    """Return a centred moving average over a fifteenth of the line, shrinking towards both ends."""
    reach = max(1, len(points) // 30)
    result: Points = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)
        window = points[index - near : index + near + 1]
        result.append((x, sum(y for _, y in window) / len(window)))
    return result


def value_scale(values: list[float], log: bool, from_zero: bool) -> Scale:
    """Return the scale of a value axis, with some room around the values."""
    low, high = min(values), max(values)
    if log:
        return Scale(
            10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)), HEIGHT, log, flip=True
        )
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= max(1e-18, 1e-9 * max(abs(low), abs(high))):  # flat, but for rounding
        low, high = (low - abs(low) / 2, low + abs(low) / 2) if abs(low) > 1e-12 else (0.0, 1.0)
    if not from_zero or low < 0:
        low -= 0.06 * (high - low)
    return Scale(low, high + 0.06 * (high - low), HEIGHT, flip=True)


def value_ticks(scale: Scale) -> list[float]:
    """Return two to five round values within the scale's range."""
    if scale.log:
        first, last = round(math.log10(scale.low)), round(math.log10(scale.high))
        stride = max(1, math.ceil((last - first) / 4))
        return [10.0**exponent for exponent in range(first, last + 1, stride)]
    rough = (scale.high - scale.low) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.8)
    first, last = math.ceil(scale.low / stride), math.floor(scale.high / stride)
    return [round(index * stride, 12) for index in range(first, last + 1)]


def _ends(scale: Scale) -> list[float]:
    return [scale.low] if scale.low == scale.high else [scale.low, scale.high]


def _path(points: Points, x: Scale, y: Scale, start: str = "M") -> str:
    path = start + "L".join(f"{x(step):g},{y(value):g}" for step, value in points)
    return path if len(points) > 1 else f"{path}h0"  # with round ends a line of no length is a dot


def _between(low: Points, high: Points, x: Scale, y: Scale) -> str:
    """Return the path of a closed area between two lines over the same steps."""
    return _path(high, x, y) + _path(low[::-1], x, y, start="L") + "Z"


def _line(series: Series, colour: int, x: Scale, y: Scale, log: bool) -> Mark:
    points = thin(series.points)
    last = short(series.points[-1][1])
    if log or len(points) <= SMOOTH_FROM:
        return Mark(series.label, colour, line=_path(points, x, y), last=last)
    raw = _path(points, x, y)
    return Mark(series.label, colour, line=_path(smooth(points), x, y), faint=raw, last=last)


def _within(band: Band, low: float, high: float) -> Band:
    """Return a band without the steps at which one of its three values cannot be shown."""
    three = zip(band.low.points, band.middle.points, band.high.points, strict=True)
    kept = [points for points in three if all(low <= y <= high for _, y in points)]
    columns = zip((band.low, band.middle, band.high), range(3), strict=True)
    return Band(*(Series(series.label, [points[at] for points in kept]) for series, at in columns))


def _band(band: Band, colour: int, x: Scale, y: Scale) -> Mark:
    low, middle, high = (thin(series.points) for series in (band.low, band.middle, band.high))
    last = f"{short(band.low.points[-1][1])} – {short(band.high.points[-1][1])}"
    return Mark(
        band.middle.label, colour, line=_path(middle, x, y), area=_between(low, high, x, y), last=last
    )


def _stacked(stack: Sequence[Series]) -> list[Series]:
    """Return running sums over the steps that all series share."""
    if not stack:
        return []
    shared = set.intersection(*({x for x, _ in series.points} for series in stack))
    total = dict.fromkeys(sorted(shared), 0.0)
    tops: list[Series] = []
    for series in stack:
        for step, value in series.points:
            if step in total:
                total[step] += value
        tops.append(Series(series.label, list(total.items())))
    return tops


def _areas(stack: Sequence[Series], tops: list[Series], x: Scale, y: Scale) -> list[Mark]:
    marks: list[Mark] = []
    floor = [(step, 0.0) for step, _ in tops[0].points] if tops else []
    for colour, (series, top) in enumerate(zip(stack, tops, strict=True)):
        if top.points:
            area = _between(thin(floor), thin(top.points), x, y)
            marks.append(Mark(series.label, colour, area=area, last=short(series.points[-1][1])))
        floor = top.points
    return marks


def _probes(series: Sequence[Series], x: Scale) -> list[Probe]:
    """Return strips that cover the chart, each telling the values at its middle."""
    tables = [(s.label, dict(s.points)) for s in series]
    steps = sorted({step for _, table in tables for step in table})
    stride = math.ceil(len(steps) / MAX_PROBES)
    chosen = steps[::-1][:: max(stride, 1)][::-1]
    places = [x(step) for step in chosen]
    edges = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(places)), WIDTH]
    probes: list[Probe] = []
    for index, (step, place) in enumerate(zip(chosen, places, strict=True)):
        told = "\n".join(f"{label}: {short(table[step])}" for label, table in tables if step in table)
        width = round(edges[index + 1] - edges[index], 1)
        probes.append(Probe(place, round(edges[index], 1), width, f"step {short(step)}\n{told}", step))
    return probes
