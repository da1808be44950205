"""What there is to show of each token that an episode's turns were sampled in."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from posttrain.run.token_figures import Entropies, TurnFigures, character_counts
from posttrain.types import Trajectory


class NamesTokens(Protocol):
    """A tokenizer, as far as the sizes of its tokens need it."""

    def convert_ids_to_tokens(self, ids: int, /) -> str | list[str]:
        """Return a token's name in the vocabulary."""
        ...

    def get_added_vocab(self) -> dict[str, int]:
        """Return the tokens that are no part of the model's own vocabulary."""
        ...


class TokenBytes:
    """Tells how many bytes of text a token stands for.

    In a byte-level vocabulary, which all families here have, a token's name has a letter for each byte; that
    of an added token is its text.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: NamesTokens) -> None:
        self._tokenizer = tokenizer
        self._known = {number: len(text.encode()) for text, number in tokenizer.get_added_vocab().items()}

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> "TokenBytes":
        """Read the tokenizer of a checkpoint."""
        return cls(AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=False))

    def of(self, token_ids: Sequence[int]) -> NDArray[np.int64]:
        """Return [T] the bytes of each token."""
        for new in set(token_ids) - self._known.keys():
            # A number beyond the vocabulary, which padding of the head makes possible, has no name.
            self._known[new] = len(self._tokenizer.convert_ids_to_tokens(new) or "")
        return np.array([self._known[token] for token in token_ids], np.int64)


def token_figures(
    trajectories: Iterable[Trajectory], sizes: TokenBytes, entropies: Entropies
) -> Iterator[TurnFigures]:
    """Yield the figures of each turn that the policy sampled; none of a turn that is no text.

    Args:
        trajectories: In the order of their rows.
        sizes: Sizes of tokens.
        entropies: Of the episodes whose entropies are known.
    """
    for row, trajectory in enumerate(trajectories):
        unknown = np.full(sum(trajectory.sampled), np.nan, np.float16)
        entropy, before = entropies.get((trajectory.group, trajectory.episode), unknown), 0
        turns = [message.text for message in trajectory.response if message.role == "assistant"]
        for (start, end), text in zip(_turns(trajectory.sampled), turns, strict=False):
            tokens = sizes.of(trajectory.token_ids[start:end])
            counts = character_counts(text, tokens)
            if counts is None:  # the token that ends a turn is no part of its text
                counts = character_counts(text, np.append(tokens[:-1], 0))
            # An array is written by its order, and the viewer counts turns by it.
            known = counts if counts is not None else np.zeros(0, np.uint16)
            logprobs = np.array(trajectory.logprobs[start:end][: len(known)], np.float16)
            yield TurnFigures(row, known, logprobs, entropy[before:][: len(known)])
            before += end - start


def _turns(sampled: Sequence[bool]) -> list[tuple[int, int]]:
    """Return where each run of sampled tokens begins and ends."""
    edges = np.flatnonzero(np.diff(np.array(sampled, np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
