"""The funnel: how many rows each step saw, dropped and why, as a table and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BAR_WIDTH = 24
#: Reasons of a step that the table lists.
MOST_REASONS = 3


@dataclass
class StepCount:
    """What one step did.

    Attributes:
        name: The step's.
        filter: Its filter, or `read` for the reading of the data.
        entered: Rows that came to it.
        dropped: Rows that it dropped, those that failed among them.
        failed: Rows that no verdict could be had on.
        changed: Kept rows of which it changed the query, the response or a column.
        reasons: Dropped rows by reason.
    """

    name: str
    filter: str
    entered: int
    dropped: int = 0
    failed: int = 0
    changed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        """Rows that went on."""
        return self.entered - self.dropped


@dataclass(frozen=True)
class CurationReport:
    """What a curation came to; `read` = `kept` + `dropped`, each row once.

    Attributes:
        name: The curation's.
        directory: Holds kept.jsonl, dropped.jsonl and funnel.json.
        read: Rows of the data, broken ones included.
        steps: In order; the first is the reading.
    """

    name: str
    directory: Path
    read: int
    steps: tuple[StepCount, ...]

    @property
    def dropped(self) -> int:
        """Rows in dropped.jsonl."""
        return sum(step.dropped for step in self.steps)

    @property
    def kept(self) -> int:
        """Rows in kept.jsonl."""
        return self.read - self.dropped

    def to_json(self) -> dict[str, Any]:
        """What funnel.json holds."""
        steps = [vars(step) | {"reasons": dict(step.reasons), "kept": step.kept} for step in self.steps]
        return {
            "name": self.name,
            "read": self.read,
            "kept": self.kept,
            "dropped": self.dropped,
            "steps": steps,
        }

    def table(self) -> str:
        """The funnel for a terminal.

        Example:
            step        in  dropped  kept  share of what was read    why
            read        12        0    12  ████████████████████████
            query       12        2    10  ████████████████████      repeated 1 · without content 1
        """
        lines = [("step", "in", "dropped", "kept", "share of what was read", "why")]
        for step in self.steps:
            bar = "█" * round(BAR_WIDTH * step.kept / self.read) if self.read else ""
            why = " · ".join(
                f"{reason} {count:,}" for reason, count in step.reasons.most_common(MOST_REASONS)
            )
            if more := len(step.reasons) - MOST_REASONS:
                why += f" · {more} more" if more > 0 else ""
            figures = (f"{step.entered:,}", f"{step.dropped:,}", f"{step.kept:,}")
            lines.append((step.name, *figures, bar, why))
        widths = [max(len(line[column]) for line in lines) for column in range(6)]
        return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    numeric = (False, True, True, True, False, False)
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "  ".join(padded).rstrip()
