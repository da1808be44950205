"""What a filter says of a row, and how a curation can fail."""

from dataclasses import dataclass, field
from typing import Any


class CurationError(RuntimeError):
    """A curation that cannot go on; the message says why and what to do."""


class RowError(RuntimeError):
    """No verdict on one row could be had; it is counted, and never taken for a verdict."""


@dataclass(frozen=True)
class Changes:
    """What a step does to a row that it keeps.

    Attributes:
        query: New text of the last user message; None leaves it.
        response: New response in place of all that follows the last user message; None leaves it.
        columns: Columns that are set.
    """

    query: str | None = None
    response: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.query is not None or self.response is not None or bool(self.columns)


@dataclass(frozen=True)
class Outcome:
    """A filter's verdict on one row.

    Attributes:
        reason: Why it is dropped, in words that many rows share; "" keeps it.
        note: What is particular to this row.
        scores: Figures that the verdict rests on.
        changes: What becomes of a row that is kept.
    """

    reason: str = ""
    note: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)

    @property
    def kept(self) -> bool:
        """Whether the row goes on."""
        return not self.reason
