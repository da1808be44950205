"""The proof that an engine serves what was published: it scores a few sequences as the learners do.

A publish that was left out, one that was taken by half, an adapter that never arrived and a cache that
outlived its weights all give other log-probs. The check of every batch would find them too, but only once a
rollout has been sampled.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from posttrain.rendering.rendering import Renderer
from posttrain.types import Sample, Trajectory

#: Sequences of a proof, and their tokens in all unless a single one has more.
SEQUENCES, TOKENS = 4, 2048


class ProofFailed(RuntimeError):
    """An engine does not serve the weights that were published to it."""


@dataclass(frozen=True)
class Gaps:
    """How far an engine's log-probs are from the learners'.

    Attributes:
        largest: The largest gap of a token, by sequence.
        mean: The mean gap of all tokens.
    """

    largest: list[float]
    mean: float


@dataclass(frozen=True)
class Proof:
    """What an engine must compute.

    Attributes:
        sequences: The sequences.
        score: Has the learners compute the log-probs of the sampled tokens of each.
        tolerance: Largest gap that rounding explains.
        exact: Whether it holds for every token (float32), or for the mean (bfloat16).
    """

    sequences: list[Trajectory]
    score: Callable[[Sequence[Trajectory]], list[list[float]]]
    tolerance: float
    exact: bool

    @cached_property
    def _expected(self) -> list[list[float]]:
        return self.score(self.sequences)

    def ask_learners(self) -> None:
        """Have the learners compute what is expected, with the published weights, unless they have."""
        _ = self._expected

    def gaps(self, scores: Sequence[Sequence[float]]) -> Gaps:
        """Compare an engine's log-probs, of all tokens but the first of each sequence, with the learners'."""
        largest: list[float] = []
        every: list[float] = []
        for sequence, expected, scored in zip(self.sequences, self._expected, scores, strict=True):
            places = [place for place, is_sampled in enumerate(sequence.sampled[1:]) if is_sampled]
            sampled = [scored[place] for place in places]
            found = [abs(value - wanted) for value, wanted in zip(sampled, expected, strict=True)]
            largest.append(max(found))
            every += found
        return Gaps(largest, fmean(every))

    def failure(self, scores: Sequence[Sequence[float]]) -> str | None:
        """Say what is wrong with an engine's log-probs; None if nothing is."""
        gaps = self.gaps(scores)
        measured = max(gaps.largest) if self.exact else gaps.mean
        if measured <= self.tolerance and not math.isnan(gaps.mean):
            return None
        images = [gap for gap, each in zip(gaps.largest, self.sequences, strict=True) if each.media]
        texts = [gap for gap, each in zip(gaps.largest, self.sequences, strict=True) if not each.media]
        told = f"its log-probs of {len(self.sequences)} sequences differ from the learners' by {measured:.2e}"
        limit = f"{'' if self.exact else 'in the mean, '}more than logprob_tolerance = {self.tolerance:g}"
        kinds = ((images, "with"), (texts, "without"))
        parts = [f"{max(gap):.2e} {kind} an image" for gap, kind in kinds if gap]
        only_images = bool(images and texts) and max(texts) <= self.tolerance < max(images)
        cause = (
            "it sees images through older weights, as by a cache of the vision tower's outputs"
            if only_images
            else "it serves other weights than these: older ones, a part of them, or no adapter"
        )
        return f"{told} ({', '.join(parts)} at most), {limit}: {cause}"


def proof_sequences(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Choose a few short sequences of a batch, one with an image or a video among them if there is any.

    Args:
        trajectories: The batch; sequences without sampled tokens are left out.
    """
    usable = [each for each in trajectories if any(each.sampled)]
    by_length = sorted(usable, key=lambda each: (len(each.token_ids), each.group, each.episode))
    pictured = [each for each in by_length if each.media][:1]
    plain = [each for each in by_length if not each.media][:1]
    first = pictured + plain
    chosen = first + [each for each in by_length if all(each is not other for other in first)]
    kept: list[Trajectory] = []
    for each in chosen[:SEQUENCES]:
        if kept and sum(len(other.token_ids) for other in [*kept, each]) > TOKENS:
            break
        kept.append(replace(each, prompt=(), response=[], tool_calls=[], reward=None))
    return kept


def prompt_sequences(samples: Sequence[Sample], renderer: Renderer) -> list[Trajectory]:
    """Make sequences of prompts alone, for a proof before anything has been sampled.

    Args:
        samples: Rows of the data.
        renderer: The renderer of the policy.

    Returns:
        Sequences whose text counts as sampled.
    """
    made = []
    for index, sample in enumerate(samples):
        rendered = renderer.render(sample.messages, add_generation_prompt=True)
        runs = [(image.offset, image.num_tokens) for image in rendered.images]
        runs += [run for video in rendered.videos for run in video.runs]
        within = set().union(*(range(offset, offset + number) for offset, number in runs))
        sampled = [place > 0 and place not in within for place in range(len(rendered.token_ids))]
        made.append(
            Trajectory(
                sample_id=sample.id,
                task="",
                group=index,
                episode=0,
                token_ids=list(rendered.token_ids),
                sampled=sampled,
                images=list(rendered.images),
                videos=list(rendered.videos),
            )
        )
    return made
