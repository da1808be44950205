"""What kind each sampled token is of: a digit of a box or point, another digit, tool markup, or text.

A mean over all tokens hides what matters most in this work: the digits of coordinates are a few percent of
the tokens, and the first to be wrong where engine and learner do not see the same image.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import numpy as np

#: The classes, in the order of their numbers.
CLASSES = ("coordinates", "digits", "markup", "text")
COORDINATES, DIGITS, MARKUP, TEXT = range(len(CLASSES))

_NUMBER = r"-?\d+(?:\.\d+)?"
#: Boxes and points: lists of two numbers or more in brackets, also within brackets, what is named one even
#: where a limit cut it off, and the forms of tags and attributes.
_PLACES = re.compile(
    rf"[\[(]\s*{_NUMBER}(?:\s*,\s*{_NUMBER})+\s*[\])]"
    r"|\b\w*(?:bbox|box|point|coordinate)\w*\"?\s*[:=]\s*([\[(][\[\]()\d\s.,-]*)"
    r"|<(?:box|point)>[^<]*"
    r"|<\|box_start\|>[^<]*"
    rf"|\b[xy]\d?\s*=\s*\"{_NUMBER}\"",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"<tool_call>.*?(?:</tool_call>|\Z)|[*✿]FUNCTION[*✿]:.*?(?:[*✿]RESULT[*✿]|\Z)"
    r"|<\|[^|<>]*\|>|</?(?:think|answer)>",
    re.DOTALL,
)
#: Numbers, but not those in names such as bbox_2d.
_DIGITS = re.compile(r"(?<![A-Za-z_\d])\d+")


class Decodes(Protocol):
    """A tokenizer, as far as classes need it."""

    def decode(self, token_ids: list[int], /) -> str:
        """Return the text of tokens."""
        ...


class TokenClasses:
    """Tells the class of every sampled token.

    Args:
        tokenizer: The tokenizer of the tokens.
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def of(self, token_ids: Sequence[int], sampled: Sequence[bool]) -> np.ndarray:
        """Return the number of the class of each sampled token, in order.

        Args:
            token_ids: [T] tokens of a trajectory.
            sampled: [T] which of them the policy sampled.
        """
        found = [np.empty(0, np.int8)]
        for is_turn, run in groupby(zip(token_ids, sampled, strict=True), lambda pair: pair[1]):
            if is_turn:
                found.append(self._of_turn([token for token, _ in run]))
        return np.concatenate(found)

    def _of_turn(self, token_ids: Sequence[int]) -> np.ndarray:
        """Return the classes of the tokens of one turn."""
        texts = [self._text(token) for token in token_ids]
        turn = "".join(texts)
        ends = np.cumsum([len(text) for text in texts])
        starts = ends - [len(text) for text in texts]
        markup, digits, places = (
            _touched(pattern, turn, starts, ends) for pattern in (_MARKUP, _DIGITS, _PLACES)
        )
        numbers = np.where(places, COORDINATES, DIGITS)
        return np.where(digits, numbers, np.where(markup, MARKUP, TEXT)).astype(np.int8)

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]


def _touched(pattern: re.Pattern[str], text: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Tell which tokens, by their characters' places, overlap a match of a pattern, or of its group."""
    covered = np.zeros(len(text) + 1, np.int64)
    for match in pattern.finditer(text):
        start, end = match.span(match.lastindex or 0)
        covered[start:end] = 1
    before = np.concatenate([[0], covered.cumsum()])
    return before[ends] > before[starts]
