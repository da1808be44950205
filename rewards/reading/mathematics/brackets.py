"""Texts with brackets: where they may be split, and how two of them are spelt alike."""

import itertools
import re

_OPENING, _CLOSING = "([{", ")]}"
_GAP = re.compile(r"(?<!\d)\s+|\s+(?!\d)")


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split a text at the separators that stand outside all brackets."""
    parts, start, position, depth = [], 0, 0, 0
    for found in separator.finditer(text):
        depth += _depth(text[position : found.start()])
        position = found.start()
        if depth == 0:
            parts.append(text[start : found.start()].strip())
            start = position = found.end()
    parts.append(text[start:].strip())
    return [part for part in parts if part] or [""]


def _depth(text: str) -> int:
    return (
        sum((c in _OPENING) - (c in _CLOSING) for c in text) + text.count("\\langle") - text.count("\\rangle")
    )


def balanced(text: str) -> bool:
    """Check whether no bracket closes that did not open."""
    depths = itertools.accumulate((c in _OPENING) - (c in _CLOSING) for c in text)
    return min(depths, default=0) >= 0


def spelling(text: str) -> str:
    """Return the text without white space, braces and capitals."""
    return bare(text).casefold().replace("{", "").replace("}", "")


def bare(text: str) -> str:
    """Return the text without white space, save between two digits."""
    return _GAP.sub("", text)
