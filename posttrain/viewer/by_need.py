"""Columns of a comparison: accuracy and tool calls by what prompts need, and whether calls follow it."""

from collections.abc import Sequence
from statistics import fmean

from posttrain.run.rows import EvaluationRow
from posttrain.viewer.comparison import Comparison, Setting

#: Of an evaluation's row: mean calls, with the bin of prompts after a stroke; and their rank correlation.
CALLS = "tool_calls/"
FOLLOWS = f"{CALLS}rank_correlation"


def headings(comparison: Comparison, task: str) -> list[str]:
    """Return the headings of the columns; none where an evaluation tells no calls by the prompts' need."""
    bins = _bins(comparison, task)
    if not bins:
        return []
    told = " / ".join(name.rpartition(" ")[2] for name in bins)
    column = bins[0].rpartition(" ")[0]
    return [f"accuracy at {column} {told}", f"calls at {column} {told}", "rank correlation, by seed"]


def cells(comparison: Comparison, setting: Setting, task: str) -> list[str]:
    """Return a setting's cells under `headings`: means over its seeds."""
    bins = _bins(comparison, task)
    if not bins:
        return []
    rows = [cell.accuracies[task] for cell in setting.measured(task)]
    shares = [
        _mean([row.difficulty[name].value for row in rows if name in row.difficulty], 100, 0) for name in bins
    ]
    calls = [_mean(_values(rows, CALLS + name), 1, 2) for name in bins]
    follows = [f"{value:.2f}".replace("-", "−") for value in _values(rows, FOLLOWS)]
    return [f"{' / '.join(shares)} %", " / ".join(calls), ", ".join(follows) or "–"]


def _bins(comparison: Comparison, task: str) -> list[str]:
    """Return the bins of prompts of which calls are told, in their order."""
    rows = [cell.accuracies[task] for each in comparison.settings for cell in each.measured(task)]
    names = (name.removeprefix(CALLS) for row in rows for name in row.metrics if name.startswith(CALLS))
    return [name for name in dict.fromkeys(names) if CALLS + name != FOLLOWS]


def _values(rows: Sequence[EvaluationRow], name: str) -> list[float]:
    return [row.metrics[name] for row in rows if name in row.metrics]


def _mean(values: Sequence[float], factor: float, digits: int) -> str:
    return f"{factor * fmean(values):.{digits}f}" if values else "–"
