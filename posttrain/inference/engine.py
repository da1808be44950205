"""What an inference engine must do: take token ids, return sampled token ids and their log-probs."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from posttrain.inference.weight_transfer import Manifest, TransferGroup
from posttrain.rendering.pixel_making import ImagePatches, VideoPatches


class EngineError(RuntimeError):
    """The engine refused a call or broke a promise; what it sampled since then must not be used."""


#: What becomes of the keys and values of requests in flight when the weights change: computed again, or kept.
OnPublish = Literal["recompute", "keep"]


@dataclass(frozen=True, kw_only=True)
class AdapterSlots:
    """Room for LoRA adapters in an engine.

    Attributes:
        rank: Highest rank of an adapter.
        resident: Most adapters that are loaded at the same time: the newest, and those that turns in flight
            began with.
        tower: Whether adapters may change the vision tower too.
    """

    rank: int
    resident: int
    tower: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineUse:
    """What a run does with an engine, beside sampling from the checkpoint that it starts with.

    Attributes:
        on_publish: What becomes of keys and values that older weights computed for requests in flight.
        transfer: Backend of weight transfer from learners (`nccl`, `ipc`; `gloo` on a CPU), if any.
        adapters: Room for LoRA adapters, if there are any.
        sleeps: Whether the engine gives its GPU memory away in between.
        tempered: Whether log-probs of sampled tokens are those of the distribution that they are drawn from:
            at the request's temperature, and without the tokens that are never sampled.
        reads: Most likeliest tokens per place that `Engine.read` is asked for; 0 for an engine that samples.
    """

    on_publish: OnPublish = "recompute"
    transfer: str | None = None
    adapters: AdapterSlots | None = None
    sleeps: bool = False
    tempered: bool = False
    reads: int = 0


@dataclass(frozen=True)
class EngineImage:
    """An image as the vision tower takes it, and the place of its placeholder tokens.

    Its pixels are an eighth of the patches in float32, so patches are made when the tower is about to run.

    Attributes:
        sha256: Hash of the original pixels.
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
    patches: ImagePatches | VideoPatches

    @property
    def identity(self) -> str:
        """What tells it from other images and videos; the engine runs the vision tower once for each."""
        return self.sha256

    @property
    def end(self) -> int:
        """Index after its last placeholder."""
        return self.offset + self.num_tokens


@dataclass(frozen=True)
class EngineVideo(EngineImage):
    """A video as the vision tower takes it; what is not said here is as an image has it.

    Attributes:
        sha256: Hash of its files.
        pixels: [frames, 3, height, width] bytes.
        offset: Index of the first token that stands for it; see `TrajectoryVideo`.
        part: Which part of its files is shown, and how.
        runs: (offset, number) of each run of its placeholders.
        seconds_per_grid: Seconds from one pair of frames to the next, for a model that is told them.
    """

    part: tuple[float | None, ...]
    runs: Sequence[tuple[int, int]]
    seconds_per_grid: float | None

    @property
    def identity(self) -> str:
        """Hash of its files, and the part."""
        return f"{self.sha256} {self.part}"

    @property
    def end(self) -> int:
        """Index after its last placeholder."""
        return sum(self.runs[-1])


@dataclass(frozen=True, kw_only=True)
class Request:
    """One turn to sample.

    Attributes:
        id: Unique among the requests in flight.
        token_ids: The whole dialogue so far, placeholders expanded.
        images: The dialogue's images and videos, each kind in the order of its placeholders.
        max_tokens: Most tokens to sample; at least 1.
        temperature: Sampling temperature: 1.0 in training, 0.0 for greedy decoding.
        seed: Seed of the sample, which depends on nothing else that the engine does.
        top_p: Probability mass of the likeliest tokens that sampling is restricted to.
        top_logprobs: Number of likeliest tokens per place whose log-probs are returned, at most 20.
        stops: Texts that end the turn as well; the tokens that complete one are returned.

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
    stops: Sequence[str] = ()


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
        logprobs: Log-prob of each sampled token, under the model's own distribution at temperature 1 (but see
            `EngineUse.tempered`).
        finish_reason: `stop` at the end-of-turn token or a text of `Request.stops`, `length` at `max_tokens`.
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


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """A dialogue whose tokens are given, and whose log-probs are asked for.

    Attributes:
        token_ids: At least two tokens, placeholders expanded.
        images: The dialogue's images and videos, as in a `Request`.
        since: Index of the first token whose log-probs are read; what comes before it may be shared with
            sequences that were read before.
    """

    token_ids: Sequence[int]
    images: Sequence[EngineImage] = ()
    since: int = 1


@dataclass(frozen=True)
class ReadTokens:
    """What a model says at the places of T given tokens, at temperature 1.

    Attributes:
        top: Its K likeliest tokens.
        given: [T] float32 log-probs of the given tokens.
    """

    top: TopTokens
    given: np.ndarray


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
        """Load a checkpoint's weights as a policy version.

        Requests in flight go on: what they sample from now on is of this version. What becomes of the keys
        and values that older weights computed for them is said by `EngineUse.on_publish`.
        """
        ...

    @property
    def transfer_ranks(self) -> int:
        """Number of ranks that the engine takes in a group that receives weights."""
        ...

    def join_transfer(self, group: TransferGroup) -> None:
        """Connect to the learners that will send weights, and leave the group before.

        Args:
            group: Where they meet, and the rank of the engine's first worker.

        Raises:
            TransferError: If the others do not come in time.
        """
        ...

    def receive_weights(self, manifest: Manifest, version: int) -> None:
        """Receive weights from the learners as a policy version; requests in flight go on.

        Args:
            manifest: What will be sent.
            version: The policy version that these weights are.

        Raises:
            EngineError: If these are not the weights of the engine's model.
            TransferError: If they came in part only; the engine then samples nothing until all of them come.
        """
        ...

    def load_adapter(self, path: Path, version: int) -> int:
        """Load a LoRA adapter as a policy version, for all requests submitted from now on.

        A request in flight ends under the adapter that it began with; one that no request uses is unloaded.

        Returns:
            Number of the model's modules that the adapter changes.
        """
        ...

    def score(self, sequences: Sequence[ScoreRequest]) -> list[list[float]]:
        """Compute the log-probs of given tokens under the newest weights, at temperature 1.

        Returns:
            For each sequence the log-probs of all its tokens but the first.
        """
        ...

    def read(self, sequences: Sequence[ScoreRequest], top: int) -> list[ReadTokens]:
        """Compute what the model says at the places of given tokens, those from `ScoreRequest.since` on.

        Args:
            sequences: The sequences, which are read together.
            top: Number of likeliest tokens per place: at most `EngineUse.reads`, and the vocabulary.
        """
        ...

    def sleep(self) -> None:
        """Give the GPU's memory to others, until `wake`; nothing may be in flight."""
        ...

    def wake(self) -> None:
        """Take the GPU's memory back, with the same weights in it."""
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
