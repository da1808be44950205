"""The terminal table of evaluation results: one line a (task, stage), with its interval drawn."""

from collections.abc import Container, Sequence

from posttrain.evaluation.paired import Paired
from posttrain.run.estimates import Estimate
from posttrain.run.metric_names import REWARD
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
        Lines joined by newlines, without a final one; a sentence where there are no rows. Under a row stand
        its parts: pass@k where prompts have several answers, and the accuracy by difficulty.

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
            lines += (("", *_part_cells(name, part)) for name, part in row.parts.items())
    return _laid_out(lines, numeric=(2, 3, 4))


def paired_table(rows: Sequence[tuple[str, str, str, Paired]]) -> str:
    """Lay out comparisons for a terminal.

    Args:
        rows: Task, what is compared, with what, and the comparison.

    Example:
        task       first  second  accuracy    then  points  95 % interval        p  gained  lost    n
        with_tool  sft    rl        33.0 %  70.0 %   +37.0  +31.6 – +42.1  < 0.001     170    22  400
    """
    lines = [
        ["task", "first", "second", "accuracy", "then", "points", "95 % interval", "p", "gained", "lost", "n"]
    ]
    for task, first, second, pair in rows:
        shares = [f"{100 * share:.1f} %" for share in (pair.first, pair.second)]
        change, low, high = (signed(100 * value) for value in (pair.difference, pair.low, pair.high))
        counts = [str(len(pair.gained)), str(len(pair.lost)), str(pair.n)]
        lines.append([task, first, second, *shares, change, f"{low} – {high}", p_text(pair.p), *counts])
    return _laid_out(lines, numeric=range(3, 11))


def signed(points: float) -> str:
    """Write a difference in points with its sign."""
    return f"{points:+.1f}".replace("-", "−")


def p_text(p: float) -> str:
    """Write a p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def rewards_table(rows: Sequence[EvaluationRow]) -> str:
    """Lay out the mean of every reward, of tool calls and of tokens for a terminal.

    Args:
        rows: In the order in which they were measured; what a row has not measured shows as a dash.

    Example:
        task       after  answer_accuracy  language  tool_calls   tokens
        with_tool  sft              0.330     1.000       0.980  118.400
    """
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    names.sort(key=lambda name: not name.startswith(REWARD))  # rewards come first, in their own order
    lines = [("task", "after", *(name.removeprefix(REWARD) for name in names))]
    for row in sorted(rows, key=lambda row: [r.task for r in rows].index(row.task)):
        means = (f"{row.metrics[name]:.3f}" if name in row.metrics else "–" for name in names)
        lines.append((row.task, row.stage, *means))
    return _laid_out(lines, numeric=range(2, len(lines[0])))


def _laid_out(lines: Sequence[Sequence[str]], numeric: Container[int]) -> str:
    """Pad the cells of all lines: names to the left, figures to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = (
        (
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _cells(row: EvaluationRow) -> tuple[str, str, str, str, str]:
    low, high = row.low, row.high
    interval = "–" if low is None or high is None else f"{100 * low:.1f} – {100 * high:.1f}"
    share = "–" if row.accuracy is None else f"{100 * row.accuracy:.1f} %"
    n = "–" if row.n is None else str(row.n)
    if row.samples_per_prompt > 1:
        n += f" × {row.samples_per_prompt}"
    return row.stage, share, interval, n, _track(row.accuracy, low, high)


def _part_cells(name: str, part: Estimate) -> tuple[str, str, str, str, str]:
    """Return the line of a part of a row: pass@k, or the prompts of a bin of difficulty."""
    interval = f"{100 * part.low:.1f} – {100 * part.high:.1f}"
    track = _track(part.value, part.low, part.high)
    return f"  {name}", f"{100 * part.value:.1f} %", interval, str(part.n), track


def _track(accuracy: float | None, low: float | None, high: float | None) -> str:
    """Draw the interval on a line from 0 to 100 %."""
    track = ["─"] * TRACK_WIDTH
    for value, mark in ((low, "├"), (high, "┤"), (accuracy, "●")):
        if value is not None:
            track[round(min(1.0, max(0.0, value)) * (TRACK_WIDTH - 1))] = mark
    return "".join(track)
