"""The terminal table of evaluation results: one line a (task, stage), with its interval drawn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

TRACK_WIDTH = 41
HEADER: tuple[str, ...] = (
    "task",
    "after",
    "accuracy",
    "95 % interval",
    "n",
    "0 %" + "100 %".rjust(TRACK_WIDTH - 3),
)


def evaluation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out rows of `evaluation.jsonl` for a terminal.

    Args:
        rows: `{"stage", "task", "n", "accuracy", "low", "high", …}` in the order they were measured.
            A missing or null figure shows as a dash.

    Returns:
        Lines joined by newlines, without a final one; a sentence where there are no rows.

    Example:
        task       after  accuracy  95 % interval    n  0 %                                 100 %
        with_tool  sft      33.0 %    28.6 – 37.7  400  ───────────├─●─┤─────────────────────────
                   rl       70.0 %    65.3 – 74.3  400  ──────────────────────────├─●─┤──────────
    """
    if not rows:
        return "No evaluation has been recorded."
    tasks = list(dict.fromkeys(str(row.get("task", "")) for row in rows))
    lines = [HEADER]
    for task in tasks:
        for index, row in enumerate(row for row in rows if str(row.get("task", "")) == task):
            lines.append((task if index == 0 else "", *_cells(row)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(_align(line, widths) for line in lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    accuracy, low, high = (_figure(row.get(key)) for key in ("accuracy", "low", "high"))
    interval = "–" if low is None or high is None else f"{100 * low:.1f} – {100 * high:.1f}"
    share = "–" if accuracy is None else f"{100 * accuracy:.1f} %"
    return str(row.get("stage", "")), share, interval, str(row.get("n", "–")), _track(accuracy, low, high)


def _figure(value: Any) -> float | None:
    """A finite number, or None for whatever else a row may hold."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _track(accuracy: float | None, low: float | None, high: float | None) -> str:
    """The interval on a line from 0 to 100 %."""
    track = ["─"] * TRACK_WIDTH
    for value, mark in ((low, "├"), (high, "┤"), (accuracy, "●")):
        if value is not None:
            track[round(min(1.0, max(0.0, value)) * (TRACK_WIDTH - 1))] = mark
    return "".join(track)


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, figures to the right."""
    numeric = (False, False, True, True, True, False)
    padded = (
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    )
    return "  ".join(padded).rstrip()
