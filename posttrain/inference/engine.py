"""What an inference engine must do: take token ids, return sampled token ids and their log-probs."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from posttrain.rendering.pixel_making import ImagePatches


class EngineError(RuntimeError):
    """The engine refused a call or broke a promise; what it sampled since then must not be used."""


@dataclass(frozen=True)
class EngineImage:
    """An image as the vision tower takes it, and the place of its placeholder tokens.

    Its pixels are an eighth of the patches in float32, so patches are made when the tower is about to run.

    Attributes:
        sha256: Hash of the original pixels; the engine runs the vision tower once per hash.
        pixels: [3, height, width] bytes, resized by the checkpoint's own image processor.
        grid_thw: [3] number of patches along time, height and width.
        offset: Index of its first placeholder in the request's tokens.
        num_tokens: Number of its placeholders.
        patches: Makes [patches, values per patch] of such pixels.
    """

    sha256: str
    pixels: torch.Tensor
    grid_thw: torch.Tensor
    offset: int
    num_tokens: int
    patches: ImagePatches


@dataclass(frozen=True, kw_only=True)
class Request:
    """One turn to sample.

    Attributes:
        id: Unique among the requests in flight.
        token_ids: The whole dialogue so far, image placeholders expanded.
        images: The dialogue's images, in the order of their placeholders.
        max_tokens: Most tokens to sample; at least 1.
        temperature: Sampling temperature: 1.0 in training, 0.0 for greedy decoding.
        seed: Seed of the sample, which depends on nothing else that the engine does.
        top_p: Probability mass of the likeliest tokens that sampling is restricted to.
        top_logprobs: Number of likeliest tokens per place whose log-probs are returned, at most 20.

    Example:
        Request(id="3-0-1", token_ids=[1, 5, 9], max_tokens=64, temperature=1.0, seed=stable_seed(0, 3, 0, 1))
    """

    id: str
    token_ids: Sequence[int]
    images: Sequence[EngineImage] = ()
    max_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0
    top_logprobs: int = 0


@dataclass(frozen=True)
class TopTokens:
    """The K likeliest tokens at each of T places, under the model's own distribution at temperature 1.

    Attributes:
        ids: [T, K] int32 token ids, the likeliest first.
        logprobs: [T, K] float32 log-probs of these tokens.
    """

    ids: np.ndarray
    logprobs: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished request.

    Attributes:
        id: Id of the request.
        token_ids: The sampled tokens, with the end-of-turn token if it was sampled.
        logprobs: Log-prob of each sampled token, under the model's own distribution at temperature 1.
        finish_reason: `stop` at the end-of-turn token, `length` at `max_tokens`.
        versions: The policy version whose weights sampled each token; weights may change within a turn.
        approximate: Whether each log-prob is approximate, because keys and values that older weights had
            computed were kept when the weights changed.
        top: The likeliest tokens at the place of each, if the request asked for them.
    """

    id: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
    versions: list[int]
    approximate: list[bool]
    top: TopTokens | None = None


class Engine(Protocol):
    """An engine that samples many requests at once; `step` advances each of them by about one token."""

    @property
    def version(self) -> int:
        """The policy version of the weights in use."""
        ...

    @property
    def capacity(self) -> int:
        """Number of requests that are sampled at the same time; others wait in a queue."""
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
        """Add a request to the queue."""
        ...

    def step(self) -> list[Completion]:
        """Advance every request, and return those that are finished."""
        ...

    def abort(self, ids: Iterable[str] | None = None) -> None:
        """Drop the requests with these ids, or every request that is in flight."""
        ...

    def load_weights(self, path: Path, version: int) -> None:
        """Load a checkpoint's weights as a policy version; refused while requests are in flight."""
        ...


def stable_seed(*parts: int | str) -> int:
    """Derive a seed from its parts alone, the same in every process and on every machine.

    Args:
        parts: What the random numbers are for, such as (run seed, step, group, episode, turn).

    Returns:
        An integer in [0, 2**63).
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
