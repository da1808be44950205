"""A teacher's answers on the disk, as they come, so that a resumed run asks only for those that are missing.

    answers.jsonl                  one line an answer, or the reason why there is none; only ever appended
    top-<n>.safetensors            log-probs of the likeliest tokens, of answers from the n-th line on

Log-probs are on the disk under their final name before a line refers to them, and a line that a crash cut off
is removed when the file is opened again. So an answer is there with all that belongs to it, or not at all.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from posttrain.files.durable import explaining_full_disk, sync
from posttrain.files.line_log import LineLog
from posttrain.files.strict_json import JsonObject
from posttrain.inference.engine import TopTokens
from posttrain.run.json_fields import text

LOG = "answers.jsonl"


@dataclass(frozen=True)
class AnswerLine:
    """A line of the log: an answer, or why there is none that can be learned from.

    Attributes:
        question: Number of the question.
        text: The answer.
        token_ids: The sampled tokens of an answer whose log-probs are kept; else empty.
        shard: File of these log-probs; "" if there are none.
        start: Place of the first of them in the file.
        left_out: Why the student cannot learn from the answer; "" if it can.
        error: Why there is no answer, in which case a later line may replace this one; "" if there is one.
    """

    question: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    shard: str = ""
    start: int = 0
    left_out: str = ""
    error: str = ""

    @classmethod
    def from_json(cls, line: JsonObject) -> "AnswerLine":
        """Read a line of the file.

        Raises:
            KeyError: If it names no question.
            TypeError: If a number or list is something else.
        """
        question, start, token_ids = line["question"], line.get("start", 0), line.get("token_ids", [])
        if not (isinstance(question, int) and isinstance(start, int) and isinstance(token_ids, list)):
            raise TypeError("question and start are numbers, token_ids is a list")
        return cls(
            question=question,
            text=text(line.get("text")),
            token_ids=tuple(token for token in token_ids if isinstance(token, int)),
            shard=text(line.get("shard")),
            start=start,
            left_out=text(line.get("left_out")),
            error=text(line.get("error")),
        )

    def to_json(self) -> JsonObject:
        """Return what stands in the file."""
        if self.error:
            return {"question": self.question, "error": self.error}
        if self.left_out:
            return {"question": self.question, "left_out": self.left_out}
        return {"question": self.question, "text": self.text, **self.sampled()}

    def sampled(self) -> JsonObject:
        """Return the answer's tokens and where their log-probs are; nothing for an answer without them."""
        tokens: JsonObject = {"token_ids": [*self.token_ids]} if self.token_ids else {}
        place: JsonObject = {"shard": self.shard, "start": self.start} if self.shard else {}
        return tokens | place


class AnswerLog:
    """The answers to numbered questions; about 100 bytes per question are held in memory.

    Args:
        folder: Where the files are; it exists.

    Attributes:
        failed: The questions whose last line is an error.

    Raises:
        LineLogError: If a line but the last is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.failed: set[int] = set()
        self._folder = folder
        self._offsets: dict[int, int] = {}
        self._lines = 0
        self._log = LineLog(folder / LOG, self._keep)

    def __contains__(self, question: int) -> bool:
        """Tell whether there is a line of the question, an answer or an error."""
        return question in self._offsets

    def append(self, lines: Sequence[AnswerLine], tops: Sequence[TopTokens | None] = ()) -> None:
        """Write answers; once this returns, they survive a loss of power.

        Args:
            lines: The answers, without `shard` and `start`.
            tops: The log-probs of each, None for a line without; or nothing at all.

        Raises:
            DiskFull: If there is no space; what was kept before is intact.
        """
        if any(top is not None for top in tops):
            lines = self._with_shard(lines, tops)
        self._log.append([line.to_json() for line in lines])
        self._log.sync()

    def read(self, question: int) -> AnswerLine:
        """Return the last line of a question."""
        return AnswerLine.from_json(self._log.read(self._offsets[question]))

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def _with_shard(self, lines: Sequence[AnswerLine], tops: Sequence[TopTokens | None]) -> list[AnswerLine]:
        """Write log-probs to a new file; return the lines with their places in it."""
        name = f"top-{self._lines}.safetensors"
        found = [top for top in tops if top is not None]
        tensors = {
            "ids": np.concatenate([top.ids for top in found]),
            "logprobs": np.concatenate([top.logprobs for top in found]),
        }
        unfinished = self._folder / f".{name}.tmp"
        with explaining_full_disk(unfinished):
            save_file(tensors, unfinished)
            sync(unfinished)
            unfinished.replace(self._folder / name)
            sync(self._folder)
        placed: list[AnswerLine] = []
        start = 0
        for line, top in zip(lines, tops, strict=True):
            placed.append(line if top is None else replace(line, shard=name, start=start))
            start += 0 if top is None else len(top.ids)
        return placed

    def _keep(self, line: JsonObject, offset: int) -> None:
        """Note where a line is in the file, and whether it is an error."""
        read = AnswerLine.from_json(line)
        self._offsets[read.question] = offset
        self._lines += 1
        (self.failed.add if read.error else self.failed.discard)(read.question)


def read_top_tokens(folder: Path, shard: str, start: int, count: int) -> TopTokens:
    """Read the log-probs of an answer.

    Args:
        folder: The log's folder.
        shard: The line's `shard`.
        start: The line's `start`.
        count: Number of tokens of the answer.
    """
    ids, logprobs = _shard(folder / shard)
    return TopTokens(ids[start : start + count], logprobs[start : start + count])


class _Rows(Protocol):
    """A tensor in a file, of which only the rows that are asked for are read."""

    def __getitem__(self, rows: slice) -> np.ndarray: ...


@functools.lru_cache(maxsize=64)
def _shard(path: Path) -> tuple[_Rows, _Rows]:
    """Open a file of log-probs; return its token ids and its log-probs."""
    file = safe_open(path, framework="np")
    return file.get_slice("ids"), file.get_slice("logprobs")
