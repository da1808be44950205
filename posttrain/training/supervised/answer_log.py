"""A teacher's answers as they come, on the disk: what a killed run has of them it need not ask for again.

    answers.jsonl                  one line an answer, or the reason why there is none; only ever appended
    top-<n>.safetensors            log-probs of the likeliest tokens, of answers from the n-th line on

Log-probs are on the disk under their name before a line speaks of them; a line that a crash cut off is
removed when the file is opened again. So an answer is there with all that belongs to it, or not at all.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from posttrain.files.durable import explaining_full_disk, sync
from posttrain.files.line_log import LineLog
from posttrain.inference.engine import TopTokens

LOG = "answers.jsonl"


class AnswerLog:
    """The answers to numbered questions; about 100 bytes a question are held.

    A line is `{"question": number, …}`; where it has an `error`, a later line may take its place. Where
    log-probs belong to an answer, its line has their `shard` and the number of the first, `start`, as well.

    Args:
        folder: Where the files are; it exists.

    Attributes:
        failed: The questions without an answer, of those that were asked.

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
        """Whether there is a line of the question, be it an error."""
        return question in self._offsets

    def append(self, lines: Sequence[dict[str, Any]], tops: Sequence[TopTokens | None] = ()) -> None:
        """Keep answers; once this returns, they outlast a loss of power.

        Args:
            lines: JSON objects with `question`.
            tops: The log-probs of each, None where a line has none; or nothing at all.

        Raises:
            DiskFull: If there is no space; what was kept before is intact.
        """
        if any(top is not None for top in tops):
            lines = self._with_shard(lines, tops)
        self._log.append(lines)
        self._log.sync()

    def read(self, question: int) -> dict[str, Any]:
        """The last line of a question."""
        return self._log.read(self._offsets[question])

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def _with_shard(
        self, lines: Sequence[dict[str, Any]], tops: Sequence[TopTokens | None]
    ) -> list[dict[str, Any]]:
        """Write log-probs under a name that no line has spoken of; the lines, with where they are."""
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
        placed, start = [], 0
        for line, top in zip(lines, tops, strict=True):
            placed.append(line if top is None else line | {"shard": name, "start": start})
            start += 0 if top is None else len(top.ids)
        return placed

    def _keep(self, line: dict[str, Any], offset: int) -> None:
        question = line["question"]
        self._offsets[question] = offset
        self._lines += 1
        (self.failed.add if "error" in line else self.failed.discard)(question)


def read_top_tokens(folder: Path, shard: str, start: int, count: int) -> TopTokens:
    """The log-probs of an answer of `count` tokens.

    Args:
        folder: Of the log.
        shard: As its line says.
        start: As its line says.
        count: Tokens of the answer.
    """
    ids, logprobs = _shard(folder / shard)
    return TopTokens(ids[start : start + count], logprobs[start : start + count])


@functools.lru_cache(maxsize=64)
def _shard(path: Path) -> tuple[Any, Any]:
    """Slices of a file that read no more than is asked of them."""
    file = safe_open(path, framework="np")
    return file.get_slice("ids"), file.get_slice("logprobs")
