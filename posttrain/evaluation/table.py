"""The terminal table of evaluation results: one line a (task, stage), with its interval drawn."""

from collections.abc import Sequence

from posttrain.run.rows import EvaluationRow

TRACK_WIDTH = 41
HEADER: tuple[str, ...] = (
    "task",
    "after",
    "accuracy",
    "95 % interval",
    "n",
    "0 %" + "100 %".rjust(TRACK_WIDTH - 3),
)


def evaluation_table(rows: Sequence[EvaluationRow]) -> str:
    """Lay out rows of `evaluation.jsonl` for a terminal.

    Args:
        rows: In the order in which they were measured; a figure that is missing shows as a dash.

    Returns:
        Lines joined by newlines, without a final one; a sentence where there are no rows.

    Example:
        task       after  accuracy  95 % interval    n  0 %                                 100 %
        with_tool  sft      33.0 %    28.6 – 37.7  400  ───────────├─●─┤─────────────────────────
                   rl       70.0 %    65.3 – 74.3  400  ──────────────────────────├─●─┤──────────
    """
    if not rows:
        return "No evaluation has been recorded."
    lines = [HEADER]
    for task in dict.fromkeys(row.task for row in rows):
        for index, row in enumerate(row for row in rows if row.task == task):
            lines.append((task if index == 0 else "", *_cells(row)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(_align(line, widths) for line in lines)


def _cells(row: EvaluationRow) -> tuple[str, str, str, str, str]:
    low, high = row.low, row.high
    interval = "–" if low is None or high is None else f"{100 * low:.1f} – {100 * high:.1f}"
    share = "–" if row.accuracy is None else f"{100 * row.accuracy:.1f} %"
    n = "–" if row.n is None else str(row.n)
    return row.stage, share, interval, n, _track(row.accuracy, low, high)


def _track(accuracy: float | None, low: float | None, high: float | None) -> str:
    """Draw the interval on a line from 0 to 100 %."""
    track = ["─"] * TRACK_WIDTH
    for value, mark in ((low, "├"), (high, "┤"), (accuracy, "●")):
        if value is not None:
            track[round(min(1.0, max(0.0, value)) * (TRACK_WIDTH - 1))] = mark
    return "".join(track)


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Pad the cells of a line: names to the left, figures to the right."""
    numeric = (False, False, True, True, True, False)
    padded = (
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    )
    return "  ".join(padded).rstrip()
