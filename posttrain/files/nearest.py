"""The nearest right name, for messages."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return that one of some names which is most like a given one; None if none is near.

    Args:
        name: As somebody wrote it.
        names: Right ones.
        cutoff: Least share of letters in common (difflib's ratio) of a near one.
    """
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return near[0] if near else None


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `did you mean x?` for the nearest of some names, or "" if none is near."""
    near = nearest(name, names, cutoff)
    return f"did you mean {near}?" if near else ""
