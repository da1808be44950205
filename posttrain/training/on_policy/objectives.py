"""What learners minimise: a sum of terms, each with its loss, and the metrics that only it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posttrain.config import AlgorithmConfig
from posttrain.config.objectives import Grpo, Gspo, Sapo
from posttrain.objectives.packed import SampledTokens
from posttrain.objectives.policy_gradient import grpo_loss, gspo_loss
from posttrain.objectives.sapo import gate_quantiles, sapo_loss
from posttrain.run.metric_names import CLIP_FRACTION
from posttrain.training.core.distributed import sum_over_ranks
from posttrain.types import Trajectory

#: What a term tells of one row, by name.
Piece = dict[str, Tensor]


@dataclass(frozen=True)
class LearnedRow:
    """What the terms of a loss are computed from: a row of episodes that has been run forward.

    Attributes:
        trajectories: The episodes, one after another.
        tokens: Their sampled tokens; `tokens.mean` is the normalised mean of a value of each.
    """

    trajectories: Sequence[Trajectory]
    tokens: SampledTokens


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
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms = list(terms)

    def teaches(self, episode: Trajectory) -> bool:
        """Tell whether any of the terms learns from an episode."""
        return any(term.teaches(episode) for term in self._terms)

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
    """Clipped ratios, of tokens or of sequences; its metric is the share of tokens that were clipped."""

    settings: Grpo | Gspo

    def teaches(self, episode: Trajectory) -> bool:
        """Tell whether the episode has an advantage."""
        return bool(episode.advantage)

    def loss(self, row: LearnedRow) -> tuple[Tensor, Piece]:
        """Compute a row's share; see `grpo_loss` and `gspo_loss`."""
        loss = grpo_loss if self.settings.name == "grpo" else gspo_loss
        return loss(row.tokens, clip_low=self.settings.clip_low, clip_high=self.settings.clip_high)

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Compute the share of the tokens of all ranks whose gradient the clip removed."""
        clipped = sum(piece["clipped_sum"].item() for piece in pieces)
        return {CLIP_FRACTION: sum_over_ranks(torch.tensor(clipped, dtype=torch.float64)).item() / num_tokens}


def objective_of(algorithm: AlgorithmConfig) -> Objective:
    """Make the objective that a stage's settings name."""
    return Objective([SapoTerm(algorithm) if isinstance(algorithm, Sapo) else ClippedTerm(algorithm)])
