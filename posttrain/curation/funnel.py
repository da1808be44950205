"""The funnel: how many rows came to each step, how many it dropped, and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.files.strict_json import Json, JsonObject

#: Characters of the longest bar in the table.
BAR_WIDTH = 24
#: Most reasons of a step that the table lists.
MOST_REASONS = 3


@dataclass
class StepCount:
    """What one step did, in numbers of rows.

    Attributes:
        name: Name of the step.
        filter: Name of its filter, or `read` for the reading of the data.
        entered: Rows that came to it.
        dropped: Rows that it dropped, those that failed included.
        failed: Rows for which there was no verdict.
        changed: Rows that it kept, and whose query, response or columns it changed.
        reasons: Dropped rows by reason.
        kept_as: Kept rows by what they were found to be, where the filter tells it.
    """

    name: str
    filter: str
    entered: int
    dropped: int = 0
    failed: int = 0
    changed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kept_as: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        """Number of rows that it kept."""
        return self.entered - self.dropped


@dataclass(frozen=True)
class CurationReport:
    """The result of a curation; `read` = `kept` + `dropped`, each row counted once.

    Attributes:
        name: Name of the curation.
        directory: The directory of kept.jsonl, dropped.jsonl and funnel.json.
        read: Number of rows of the data, broken ones included.
        steps: The steps in order; the first is the reading of the data.
    """

    name: str
    directory: Path
    read: int
    steps: tuple[StepCount, ...]

    @property
    def dropped(self) -> int:
        """Number of rows in dropped.jsonl."""
        return sum(step.dropped for step in self.steps)

    @property
    def kept(self) -> int:
        """Number of rows in kept.jsonl."""
        return self.read - self.dropped

    def to_json(self) -> JsonObject:
        """Return the content of funnel.json."""
        steps: list[Json] = [
            vars(step) | {"reasons": {**step.reasons}, "kept_as": {**step.kept_as}, "kept": step.kept}
            for step in self.steps
        ]
        return {
            "name": self.name,
            "read": self.read,
            "kept": self.kept,
            "dropped": self.dropped,
            "steps": steps,
        }

    def table(self) -> str:
        """Return the funnel as a table for a terminal.

        Example:
            step        in  dropped  kept  share of what was read    why
            read        12        0    12  ████████████████████████
            query       12        2    10  ████████████████████      repeated 1 · without content 1
        """
        lines = [("step", "in", "dropped", "kept", "share of what was read", "why")]
        for step in self.steps:
            bar = "█" * round(BAR_WIDTH * step.kept / self.read) if self.read else ""
            why = " · ".join(filter(None, [_counts(step.reasons), _counts(step.kept_as, "kept: ")]))
            figures = (f"{step.entered:,}", f"{step.dropped:,}", f"{step.kept:,}")
            lines.append((step.name, *figures, bar, why))
        widths = [max(len(line[column]) for line in lines) for column in range(6)]
        return "\n".join(_aligned(line, widths) for line in lines)


def _counts(counts: Counter[str], before: str = "") -> str:
    """Write the most frequent of some counts in one line, or nothing."""
    told = " · ".join(f"{what} {count:,}" for what, count in counts.most_common(MOST_REASONS))
    more = len(counts) - MOST_REASONS
    return (f"{before}{told}" if told else "") + (f" · {more} more" if more > 0 else "")


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Pad the cells of a line to the widths of their columns."""
    numeric = (False, True, True, True, False, False)
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "  ".join(padded).rstrip()
