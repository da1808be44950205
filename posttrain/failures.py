"""Failures of the world: what goes wrong in an episode although the model did nothing wrong."""

from dataclasses import dataclass, field


class WorldError(Exception):
    """Something that an episode needs does not work: a dead server, a sandbox that does not start.

    The episode is played once more, and if that fails as well it teaches nothing: it has no advantage and is
    in no baseline. A mistake of the model is no such thing; it is an observation, from which it can learn.

    Attributes:
        tool: The tool or environment that failed; whoever runs it fills it in.
        seconds: After how long; None where nobody has measured it.

    Args:
        reason: What happened, for people; the model never sees it.
        tool: See above.
    """

    def __init__(self, reason: str, tool: str = "") -> None:
        super().__init__(reason)
        self.tool = tool
        self.seconds: float | None = None


@dataclass(frozen=True)
class ToolFailure:
    """A failure of the world in an episode, which says nothing of the model.

    Attributes:
        tool: The tool or environment that failed.
        reason: What happened, in one line.
        seconds: After how long, where that is known. It is no part of what failures are compared by.
    """

    tool: str
    reason: str
    seconds: float | None = field(default=None, compare=False)
