"""The verdict of a filter on a row, and the ways in which a curation can fail."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from posttrain.files.strict_json import JsonObject
from posttrain.messages import MessageRow


class CurationError(RuntimeError):
    """A curation cannot go on; the message says why, and what to do."""


class RowError(RuntimeError):
    """There is no verdict on one row; such rows are counted, and never taken for dropped ones."""


@dataclass(frozen=True)
class Changes:
    """What a step changes in a row that it keeps.

    Attributes:
        query: New text of the last user message; None for no change.
        response: New response, in place of everything after the last user message; None for no change.
        messages: The whole dialogue in place of the row's, in the canonical JSON form; None for no change.
        tools: The specifications of that dialogue's tools, as rows have them; None for no change.
        columns: Columns that are set.
    """

    query: str | None = None
    response: str | None = None
    messages: Sequence[MessageRow] | None = None
    tools: Sequence[Mapping[str, object]] | None = None
    columns: JsonObject = field(default_factory=dict)

    def __bool__(self) -> bool:
        written = (self.query, self.response, self.messages, self.tools)
        return any(part is not None for part in written) or bool(self.columns)


@dataclass(frozen=True)
class Outcome:
    """A filter's verdict on one row.

    Attributes:
        reason: Why the row is dropped, in the same words for all rows of this kind; "" keeps it.
        note: Details of this row.
        scores: Numbers on which the verdict is based.
        changes: Changes of a row that is kept.
        kept_as: What a kept row was found to be, in the same words for all rows of this kind; "" for nothing.
    """

    reason: str = ""
    note: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)
    kept_as: str = ""

    @property
    def kept(self) -> bool:
        """Whether the row is kept."""
        return not self.reason
