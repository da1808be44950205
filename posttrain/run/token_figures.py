"""Figures of each token that was sampled, beside the rows of `rollouts/`, for who looks at a turn closely.

`step-3.tokens.npz` belongs to `step-3.jsonl`. It holds no token ids: how many characters of its turn's text a
token stands for is enough to show it, by any program, without a tokenizer.
"""

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posttrain.files.durable import write_atomic

_SUFFIX = ".tokens.npz"
#: [T] entropies at all sampled tokens of an episode, in nats, by its group and number.
Entropies = dict[tuple[int, int], NDArray[np.float16]]


@dataclass(frozen=True)
class TurnFigures:
    """Figures of one turn of the model.

    Attributes:
        row: Of the episodes' file, from 0.
        lengths: [T] characters of the turn's text that each token stands for; 0 for a token that shows as
            nothing, or that ends within a character.
        logprobs: [T] the engine's log-probs.
        entropies: [T] of the policy that the step started from, in nats; NaN where no learner ran the
            episode, as in groups without signal and in evaluations.
    """

    row: int
    lengths: NDArray[np.uint16]
    logprobs: NDArray[np.float16]
    entropies: NDArray[np.float16]


def character_counts(text: str, token_bytes: NDArray[np.integer]) -> NDArray[np.uint16] | None:
    """Find how many characters of a text each of its tokens stands for.

    Args:
        text: The text that the tokens decode to.
        token_bytes: [T] bytes of each token.

    Returns:
        [T] counts that sum to the text's length; None where the bytes are not the text's, as where a token
        is no valid UTF-8 and was decoded to a placeholder.
    """
    written = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    ends = np.cumsum(token_bytes)
    if (int(ends[-1]) if len(ends) else 0) != len(written):
        return None
    ended = np.concatenate([[0], np.cumsum((written & 0xC0) != 0x80)])  # characters that begin before a byte
    # A character counts for the token with which it ends.
    whole = np.concatenate([(written & 0xC0) != 0x80, [True]])
    places = np.where(whole[ends], ended[ends], ended[ends] - 1)
    return np.diff(places, prepend=0).astype(np.uint16)


def token_figures_of(rows: Path) -> Path:
    """Return where the figures that belong to a file of episodes are."""
    return rows.with_name(rows.stem + _SUFFIX)


def write_token_figures(rows: Path, turns: Iterable[TurnFigures]) -> None:
    """Write the figures that belong to a file of episodes.

    Args:
        rows: The file of episodes.
        turns: In the order of the rows, and of the turns in each.

    Raises:
        DiskFull: If there is no space.
    """
    turns = list(turns)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        rows=np.array([turn.row for turn in turns], np.int32),
        counts=np.array([len(turn.lengths) for turn in turns], np.int32),
        lengths=_joined([turn.lengths for turn in turns], np.uint16),
        logprobs=_joined([turn.logprobs for turn in turns], np.float16),
        entropies=_joined([turn.entropies for turn in turns], np.float16),
    )
    write_atomic(token_figures_of(rows), buffer.getvalue())


def read_token_figures(rows: Path) -> list[TurnFigures]:
    """Read the figures that belong to a file of episodes; none where there are none or they are damaged."""
    try:
        with np.load(token_figures_of(rows), allow_pickle=False) as held:
            of, counts = held["rows"], held["counts"]
            figures = [held[name] for name in ("lengths", "logprobs", "entropies")]
        ends = np.cumsum(counts)
        if counts.min(initial=0) < 0 or any(int(ends[-1:].sum()) != len(each) for each in figures):
            return []
        parts = zip(of.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return []
    return [TurnFigures(row, *(each[start:end] for each in figures)) for row, start, end in parts]


def _joined(parts: Sequence[NDArray[np.generic]], kind: type[np.generic]) -> NDArray[np.generic]:
    return np.concatenate(parts).astype(kind) if parts else np.zeros(0, kind)
