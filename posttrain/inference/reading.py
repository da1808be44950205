"""Have an engine's model read finished episodes: what would it have said where the policy sampled?"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from posttrain.inference.engine import EngineImage, ReadTokens, ScoreRequest
from posttrain.inference.serving import aside
from posttrain.inference.worker import InferenceWorker
from posttrain.rendering.pixels import part_of
from posttrain.run.home import fetch_files
from posttrain.types import Trajectory


class ReadingError(RuntimeError):
    """What was read is not what is to be learned from."""


@dataclass(frozen=True)
class Reading:
    """What a model says at the places of the T tokens that were sampled in an episode.

    Attributes:
        digest: Of the tokens and images that it read; see `digest_of`.
        ids: [T, K] int32 ids of its likeliest tokens.
        logprobs: [T, K] float32 log-probs of these.
        sampled: [T] float32 log-probs of the sampled tokens.
    """

    digest: str
    ids: np.ndarray
    logprobs: np.ndarray
    sampled: np.ndarray

    def check(self, episode: Trajectory) -> None:
        """Check that this was read of an episode, whole, and is a part of a distribution at every place.

        Raises:
            ReadingError: If it is not.
        """
        count = sum(episode.sampled)
        told = f"what a teacher read of episode {episode.episode} of sample {episode.sample_id!r}"
        if self.digest != digest_of(episode):
            raise ReadingError(f"{told} is of other tokens or images")
        if self.ids.shape != self.logprobs.shape or len(self.ids) != count or self.sampled.shape != (count,):
            raise ReadingError(
                f"{told} has shapes {self.ids.shape}, {self.logprobs.shape} and {self.sampled.shape}, and"
                f" {count} tokens were sampled"
            )
        mass = np.exp(self.logprobs.astype(np.float64)).sum(1)
        if not (np.isfinite(self.sampled).all() and (mass < 1 + MASS_ROUNDING).all()):
            raise ReadingError(f"{told} is no distribution: the log-probs are not finite, or too large")


#: By how much the mass of tokens may exceed 1 because of rounding.
MASS_ROUNDING = 1e-3


def digest_of(episode: Trajectory) -> str:
    """Return a hash of what an episode shows a model: tokens, which were sampled, images and videos."""
    images: list[tuple[object, ...]] = [
        (image.ref.sha256, image.offset, image.num_tokens) for image in episode.images
    ]
    images += [(video.ref.sha256, part_of(video.ref), video.runs) for video in episode.videos]
    sampled = np.packbits(np.array(episode.sampled, bool)).tobytes()
    parts = (np.array(episode.token_ids, np.int64).tobytes(), sampled, repr(images).encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


@dataclass(frozen=True)
class ReadEpisodes:
    """A job: read the episodes of a group together, so that they share what they begin with.

    Attributes:
        episodes: Finished ones, each with a sampled token; they travel without their texts.
        top: Number of likeliest tokens per place.
    """

    episodes: Sequence[Trajectory]
    top: int

    @property
    def size(self) -> int:
        """Number of slots that it takes: an engine reads the whole group at once."""
        return 1

    async def __call__(self, worker: InferenceWorker) -> list[Reading]:
        """Return what the engine's model says of each; every image and video of every turn is shown to it.

        Raises:
            ImageError, ImageChangedError, VideoError: If one of them is not what the episode was shown.
        """
        slot, pictures = worker.serving.slot(), worker.images.open()
        shown = [medium for each in self.episodes for medium in each.media]
        files = [Path(image.ref.path) for each in self.episodes for image in each.images]
        try:
            await slot.granted
            await aside(worker.tools, fetch_files, files)
            images = await slot.images(pictures, shown)
            requests = [
                request_of(episode, images[start:end])
                for episode, (start, end) in zip(
                    self.episodes,
                    pairwise(accumulate((len(each.media) for each in self.episodes), initial=0)),
                    strict=True,
                )
            ]
            found = await asyncio.wrap_future(
                worker.serving.call(lambda engine: engine.read(requests, self.top))
            )
        finally:
            pictures.close()
            slot.close()
        return [_reading(episode, read) for episode, read in zip(self.episodes, found, strict=True)]


def request_of(episode: Trajectory, images: Sequence[EngineImage]) -> ScoreRequest:
    """Make a request of an episode, up to its last sampled token."""
    places = [place for place, sampled in enumerate(episode.sampled) if sampled]
    end = places[-1] + 1
    return ScoreRequest(
        token_ids=episode.token_ids[:end],
        images=[image for image in images if image.offset < end],
        since=places[0],
    )


def _reading(episode: Trajectory, read: ReadTokens) -> Reading:
    """Keep of a reading the places of sampled tokens."""
    places = np.flatnonzero(episode.sampled)
    places -= places[0]
    top = read.top
    return Reading(digest_of(episode), top.ids[places], top.logprobs[places], read.given[places])
