"""What the episode driver asks of an inference engine: tokens in, sampled tokens and log-probs out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch


class EngineError(RuntimeError):
    """The engine refused or broke a promise; what it sampled since must not be used."""


@dataclass(frozen=True)
class EngineImage:
    """An image as the vision tower takes it, and where its placeholders are.

    Attributes:
        sha256: Hash of the original pixels; the engine runs the vision tower once for each.
        pixel_values: [patches, values a patch], made by the checkpoint's own image processor.
        grid_thw: [3] patches along time, height and width.
        offset: Index of its first placeholder in the request's tokens.
        num_tokens: Number of placeholders.
    """

    sha256: str
    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    offset: int
    num_tokens: int


@dataclass(frozen=True)
class Request:
    """One turn to sample.

    Attributes:
        id: Unique among the requests in flight.
        token_ids: The whole dialogue so far, image placeholders expanded.
        images: In the order of their placeholders.
        max_tokens: Most tokens to sample; at least 1.
        temperature: 1.0 in training, 0.0 for greedy.
        seed: Decides the sample, whatever else the engine is doing.
        top_p: Share of the probability that tokens are sampled from.
        top_logprobs: For how many of the likeliest tokens the log-probs are wanted, at most 20.

    Example:
        Request("3-0-1", [1, 5, 9], [], max_tokens=64, temperature=1.0, seed=stable_seed(0, 3, 0, 1))
    """

    id: str
    token_ids: Sequence[int]
    images: Sequence[EngineImage]
    max_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0
    top_logprobs: int = 0


@dataclass(frozen=True)
class TopTokens:
    """The likeliest tokens at each place of an answer, under the model's own distribution at temperature 1.

    Attributes:
        ids: [T, K] int32, the likeliest first.
        logprobs: [T, K] float32.
    """

    ids: np.ndarray
    logprobs: np.ndarray


@dataclass(frozen=True)
class Completion:
    """A finished request.

    Attributes:
        id: The request's.
        token_ids: The sampled tokens, the end-of-turn token included where it was sampled.
        logprobs: Of each sampled token under the model's own distribution at temperature 1.
        finish_reason: `stop` at the end-of-turn token, `length` at `max_tokens`.
        version: The policy version that sampled them.
        top: The likeliest tokens at the place of each, where the request wanted them.
    """

    id: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
    version: int
    top: TopTokens | None = None


class Engine(Protocol):
    """Samples many requests at once; every `step` advances each of them by about one token."""

    @property
    def version(self) -> int:
        """The policy version of the weights in use."""
        ...

    @property
    def capacity(self) -> int:
        """How many requests are sampled at the same time; more are queued."""
        ...

    @property
    def busy(self) -> bool:
        """Whether requests are in flight."""
        ...

    @property
    def step_began(self) -> float | None:
        """`time.monotonic()` at which the step in progress began, for a watcher in another thread."""
        ...

    def submit(self, request: Request) -> None:
        """Queue a request."""
        ...

    def step(self) -> list[Completion]:
        """Advance, and return what finished."""
        ...

    def abort(self) -> None:
        """Drop what is in flight."""
        ...

    def load_weights(self, path: Path, version: int) -> None:
        """Take a checkpoint's weights; refused while requests are in flight."""
        ...


def stable_seed(*parts: int | str) -> int:
    """A seed that depends on its parts alone, the same in every process and on every machine.

    Args:
        parts: What the randomness belongs to, such as (run seed, step, group, episode, turn).

    Returns:
        An integer in [0, 2**63).
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
