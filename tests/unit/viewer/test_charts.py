import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.viewer.charts import (
    HEIGHT,
    MAX_POINTS,
    MAX_PROBES,
    WIDTH,
    Band,
    Series,
    draw,
    short,
    smooth,
    thin,
)

FINITE = st.floats(-1e300, 1e300, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (12.0, "12"),
        (0.70123, "0.701"),
        (-0.0162, "−0.0162"),
        (1234.5, "1,234"),
        (1e-5, "1e-5"),
        (3.25e-4, "3.2e-4"),
        (2e7, "2e7"),
    ],
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_no_values_make_no_chart():
    assert draw("empty", "", [Series("a", [])]) is None
    assert draw("nothing positive", "", [Series("a", [(1, 0.0), (2, -1.0)])], log=True) is None


def test_a_band_that_touches_zero_leaves_those_steps_out_of_a_logarithmic_chart():
    low, middle, high = (Series("gap", [(1, y), (2, 2 * y), (3, 3 * y)]) for y in (0.0, 1e-3, 1e-2))
    assert draw("gap", "", bands=[Band(low, middle, high)], log=True) is None
    low = Series("gap", [(1, 0.0), (2, 1e-4), (3, 1e-4)])
    chart = draw("gap", "", bands=[Band(low, middle, high)], log=True, include=(0.0, 1e-2))
    assert chart is not None
    assert [probe.step for probe in chart.probes] == [2, 3]
    shorter = draw("gap", "", bands=[Band(low, middle, high)], include=(0.0, 1e-2))
    assert shorter is not None
    assert [probe.step for probe in shorter.probes] == [1, 2, 3]


@settings(max_examples=40)
@given(
    points=st.lists(
        st.tuples(st.integers(0, 10**7), FINITE), min_size=1, max_size=50, unique_by=lambda p: p[0]
    )
)
@pytest.mark.parametrize("options", [{}, {"include": (0.0, 7.0)}, {"log": True}, {"limit": 0.5}])
def test_any_line_stays_within_its_frame(options, points):
    chart = draw("any", "", [Series("a", sorted(points))], **options)
    if chart is None:
        assert options == {"log": True}
        return
    pairs = chart.marks[0].line.removeprefix("M").removesuffix("h0").split("L")
    corners = [tuple(float(figure) for figure in pair.split(",")) for pair in pairs]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in corners)
    assert all(0 <= y <= HEIGHT for y, _ in chart.y_ticks)


def test_higher_values_are_drawn_higher():
    chart = draw("up", "", [Series("a", [(0, 1.0), (10, 3.0)])])
    assert chart
    (x0, y0), (x1, y1) = (map(float, pair.split(",")) for pair in chart.marks[0].line[1:].split("L"))
    assert (x0, x1) == (0, WIDTH)
    assert y1 < y0


def test_long_runs_stay_small_and_keep_their_mean():
    points = [(float(step), math.sin(step)) for step in range(100_003)]
    thinned = thin(points)
    assert len(thinned) <= MAX_POINTS
    assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(0, abs=1e-3)
    chart = draw("long", "", [Series("a", points)])
    assert chart
    assert len(chart.probes) <= MAX_PROBES
    assert chart.probes[-1].text.startswith("step 100,002")


def test_smoothing_keeps_straight_lines_straight():
    line = [(float(x), 2.0 * x + 1) for x in range(100)]
    assert smooth(line) == [pytest.approx(point) for point in line]


def test_stacked_areas_add_up():
    parts = [Series("a", [(1, 1.0), (2, 2.0)]), Series("b", [(1, 3.0), (2, 2.0), (3, 9.0)])]
    chart = draw("time", "", stack=parts)
    assert chart
    top = chart.marks[1].area.split("Z")[0]
    first, second = (float(pair.split(",")[1]) for pair in top[1:].split("L")[:2])
    assert first == second  # 1 + 3 = 2 + 2, and step 3 is not shared


def test_limit_is_within_the_frame_though_no_value_is_near():
    chart = draw("gap", "", [Series("max", [(1, 1e-7), (2, 2e-7)])], limit=1e-4, log=True)
    assert chart
    assert chart.limit == (0.0, "limit 1e-4")


def test_band_has_an_area_and_a_middle():
    low, middle, high = (Series("gate", [(1, value), (2, value)]) for value in (0.9, 1.0, 1.1))
    chart = draw("gate", "", bands=[Band(low, middle, high)])
    assert chart
    assert chart.marks[0].area
    assert chart.marks[0].line
    assert chart.marks[0].last == "0.9 – 1.1"
