"""What learners minimise: a sum of terms, each with its loss, and the metrics that only it has."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from posttrain.config import AlgorithmConfig, OnPolicyStage, ReferenceKl
from posttrain.config.objectives import Cispo, Grpo, Gspo, Sapo
from posttrain.objectives.packed import SampledTokens
from posttrain.objectives.policy_gradient import cispo_loss, grpo_loss, gspo_loss
from posttrain.objectives.reference_kl import reference_kl
from posttrain.objectives.sapo import gate_quantiles, sapo_loss
from posttrain.run.metric_names import (
    CLIP_FRACTION,
    CLIP_FRACTION_DUAL,
    CLIP_FRACTION_HIGH,
    CLIP_FRACTION_LOW,
    KL_REFERENCE,
)
from posttrain.training.core.distributed import sum_over_ranks
from posttrain.training.on_policy.rows import Share
from posttrain.types import Trajectory

#: Why an episode ended that was cut at a limit.
TRUNCATED = frozenset({"max_tokens", "max_turns"})
#: Sums that a clipped loss tells of a row, and the share of the tokens that each becomes.
CLIPPED = {
    "clipped_low_sum": CLIP_FRACTION_LOW,
    "clipped_high_sum": CLIP_FRACTION_HIGH,
    "clipped_dual_sum": CLIP_FRACTION_DUAL,
}

#: What a term tells of one row, by name.
Piece = dict[str, Tensor]


@dataclass(frozen=True)
class LearnedRow:
    """What the terms of a loss are computed from: a row of episodes that has been run forward.

    Attributes:
        trajectories: The episodes, one after another.
        tokens: Their sampled tokens; `tokens.mean` is the normalised mean of a value of each.
        reference_logprobs: [T] the reference's log-probs of these; None where the stage has no reference.
        teacher_logprobs: [T] a teacher's log-probs of these; None where the stage has no teacher.
        divergences: [T] the divergences from it over the whole vocabulary, with gradient; None likewise.
    """

    trajectories: Sequence[Trajectory]
    tokens: SampledTokens
    reference_logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    divergences: Tensor | None = None


class Term(Protocol):
    """One of the terms that add up to what a learner minimises."""

    def teaches(self, episode: Trajectory) -> bool:
        """Tell whether the term has a gradient in an episode, or in one it is compared with."""
        ...

    def loss(self, row: LearnedRow) -> tuple[Tensor, Piece]:
        """Compute a row's share of the term, and the sums that its metrics are made of."""
        ...

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Make the term's own metrics of a step.

        Args:
            pieces: What `loss` returned for each row of this rank.
            num_tokens: Sampled tokens that the step learned from over all ranks, at least 1.
        """
        ...


class Objective:
    """The sum of some terms.

    Args:
        terms: The terms.
        mask_truncated: Whether nothing is learned from episodes that were cut at a limit.
    """

    def __init__(self, terms: Sequence[Term], mask_truncated: bool = False) -> None:
        self._terms = list(terms)
        self._mask_truncated = mask_truncated

    def teaches(self, episode: Trajectory) -> bool:
        """Tell whether any of the terms learns from an episode."""
        return any(term.teaches(episode) for term in self._terms)

    def masked(self, episode: Trajectory) -> bool:
        """Tell whether an episode is left out of the loss since it was cut at a limit."""
        return self._mask_truncated and episode.stop_reason in TRUNCATED

    def loss(self, row: LearnedRow) -> tuple[Tensor, list[Piece]]:
        """Compute a row's share of the loss, and what each term tells of it."""
        shares, pieces = zip(*(term.loss(row) for term in self._terms), strict=True)
        return torch.stack(shares).sum(), list(pieces)

    def metrics(self, pieces: Sequence[Sequence[Piece]], num_tokens: float) -> dict[str, float]:
        """Make the metrics of all terms; the arguments are those of `Term.metrics`, by row and term."""
        found: dict[str, float] = {}
        for place, term in enumerate(self._terms):
            found |= term.metrics([row[place] for row in pieces], num_tokens)
        return found


@dataclass(frozen=True)
class SapoTerm:
    """Soft gates on the ratios; its metrics are the gate's quantiles over this rank's tokens."""

    settings: Sapo

    def teaches(self, episode: Trajectory) -> bool:
        """Tell whether the episode has an advantage."""
        return bool(episode.advantage)

    def loss(self, row: LearnedRow) -> tuple[Tensor, Piece]:
        """Compute a row's share; see `sapo_loss`."""
        return sapo_loss(row.tokens, tau_pos=self.settings.tau_pos, tau_neg=self.settings.tau_neg)

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Compute the quantiles of the gate's weights; see `gate_quantiles`."""
        return gate_quantiles(pieces)


@dataclass(frozen=True)
class ClippedTerm:
    """Bounded ratios, of tokens or of sequences; its metrics are the shares of tokens that each bound met."""

    settings: Grpo | Gspo | Cispo

    def teaches(self, episode: Trajectory) -> bool:
        """Tell whether the episode has an advantage."""
        return bool(episode.advantage)

    def loss(self, row: LearnedRow) -> tuple[Tensor, Piece]:
        """Compute a row's share; see `grpo_loss`, `gspo_loss` and `cispo_loss`."""
        if isinstance(self.settings, Cispo):
            return cispo_loss(row.tokens, clip_high=self.settings.clip_high)
        bounds = {"clip_low": self.settings.clip_low, "clip_high": self.settings.clip_high}
        loss = grpo_loss if isinstance(self.settings, Grpo) else gspo_loss
        return loss(row.tokens, **bounds, dual_clip=self.settings.dual_clip)

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Compute the shares of the tokens of all ranks that the bounds cut, in all and each."""
        sums = torch.tensor([_total(pieces, name) for name in self._bounds], dtype=torch.float64)
        shares: list[float] = (sum_over_ranks(sums) / num_tokens).tolist()
        named = {CLIPPED[name]: share for name, share in zip(self._bounds, shares, strict=True)}
        return {CLIP_FRACTION: math.fsum(shares)} | named

    @property
    def _bounds(self) -> list[str]:
        """The sums that the loss tells of a row."""
        if isinstance(self.settings, Cispo):
            return ["clipped_high_sum"]
        return ["clipped_low_sum", "clipped_high_sum", *["clipped_dual_sum"] * bool(self.settings.dual_clip)]


def _total(pieces: Sequence[Piece], name: str) -> float:
    """Add up what a term told of each row of this rank."""
    return sum(piece[name].item() for piece in pieces)


def _reference_kl_sum(row: LearnedRow) -> Piece:
    """Sum up the row's estimates of KL(policy ‖ reference), those that are never negative."""
    assert row.reference_logprobs is not None
    return {"kl_sum": reference_kl(row.tokens.logprobs.detach(), row.reference_logprobs, "k3").sum()}


def _reference_kl_metric(pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
    """Compute the mean over the tokens of all ranks."""
    total = torch.tensor([_total(pieces, "kl_sum")], dtype=torch.float64)
    return {KL_REFERENCE: sum_over_ranks(total).item() / num_tokens}


@dataclass(frozen=True)
class KlTerm:
    """The distance to a reference, as a part of the loss: β times the mean of k3."""

    settings: ReferenceKl

    def teaches(self, episode: Trajectory) -> bool:
        """Tell that every episode teaches something."""
        return True

    def loss(self, row: LearnedRow) -> tuple[Tensor, Piece]:
        """Compute a row's share; see `reference_kl`."""
        assert row.reference_logprobs is not None
        estimates = reference_kl(row.tokens.logprobs, row.reference_logprobs, "k3")
        return self.settings.coefficient * row.tokens.mean(estimates), _reference_kl_sum(row)

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Compute the mean divergence of a token."""
        return _reference_kl_metric(pieces, num_tokens)


@dataclass(frozen=True)
class PenalisedTerm:
    """A policy objective whose tokens pay for their distance to a reference: Â − β k1 of the old policy."""

    settings: ReferenceKl
    policy: Term

    def teaches(self, episode: Trajectory) -> bool:
        """Tell that every episode teaches something."""
        return True

    def loss(self, row: LearnedRow) -> tuple[Tensor, Piece]:
        """Compute a row's share of the policy's objective."""
        assert row.reference_logprobs is not None
        penalties = reference_kl(row.tokens.old_logprobs, row.reference_logprobs, "k1")
        advantages = row.tokens.advantages - self.settings.coefficient * penalties
        loss, piece = self.policy.loss(replace(row, tokens=replace(row.tokens, advantages=advantages)))
        return loss, piece | _reference_kl_sum(row)

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Make the policy objective's metrics, and compute the mean divergence of a token."""
        return self.policy.metrics(pieces, num_tokens) | _reference_kl_metric(pieces, num_tokens)


@dataclass(frozen=True)
class WeightedTerm:
    """A term times a factor; its metrics are the term's own."""

    term: Term
    factor: float

    def teaches(self, episode: Trajectory) -> bool:
        """Tell whether the term learns from an episode."""
        return self.term.teaches(episode)

    def loss(self, row: LearnedRow) -> tuple[Tensor, Piece]:
        """Compute a row's share of the term, times the factor."""
        share, piece = self.term.loss(row)
        return self.factor * share, piece

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Make the term's own metrics."""
        return self.term.metrics(pieces, num_tokens)


def objective_of(
    algorithm: AlgorithmConfig | None, factor: float = 1.0, beside: Sequence[Term] = ()
) -> Objective:
    """Make the objective that a stage's settings name.

    Args:
        algorithm: What learns from rewards, if anything does.
        factor: The weight of its policy objective.
        beside: Other terms, with weight 1.
    """
    if algorithm is None:
        return Objective(list(beside))
    policy: Term = SapoTerm(algorithm) if isinstance(algorithm, Sapo) else ClippedTerm(algorithm)
    if algorithm.kl is not None and algorithm.kl.place == "reward":
        policy = PenalisedTerm(algorithm.kl, policy)
    terms = [policy if factor == 1 else WeightedTerm(policy, factor), *beside]
    if algorithm.kl is not None and algorithm.kl.place != "reward":
        terms.append(KlTerm(algorithm.kl))
    return Objective(terms, algorithm.mask_truncated)


def normalizer_of(stage: OnPolicyStage, share: Share) -> float:
    """Return what the sum over a mini-batch's tokens or sequences is divided by.

    Args:
        stage: The stage's settings; one without an objective of rewards has the mean over tokens.
        share: A rank's part of the mini-batch, which knows the whole one's counts.
    """
    kind = stage.algorithm.loss_normalization if stage.algorithm is not None else "token"
    if kind == "constant":
        return share.sequences * stage.longest_response
    return max(1, share.tokens) if kind == "token" else share.sequences
