"""The objectives of an rl stage: each with its loss, and the metrics that only it has."""

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

#: What a loss tells of one micro-batch, by name.
Piece = dict[str, Tensor]


class Objective(Protocol):
    """What a learner minimises."""

    def loss(self, tokens: SampledTokens) -> tuple[Tensor, Piece]:
        """Compute a micro-batch's share of the loss, and the sums that its metrics are made of."""
        ...

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Make the objective's own metrics of a step.

        Args:
            pieces: What `loss` returned for each micro-batch of this rank.
            num_tokens: Sampled tokens of the step over all ranks, at least 1.
        """
        ...


@dataclass(frozen=True)
class SapoObjective:
    """Soft gates on the ratios; its metrics are the gate's quantiles over this rank's tokens."""

    settings: Sapo

    def loss(self, tokens: SampledTokens) -> tuple[Tensor, Piece]:
        """Compute a micro-batch's share; see `sapo_loss`."""
        return sapo_loss(tokens, tau_pos=self.settings.tau_pos, tau_neg=self.settings.tau_neg)

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Compute the quantiles of the gate's weights; see `gate_quantiles`."""
        return gate_quantiles(pieces)


@dataclass(frozen=True)
class ClippedObjective:
    """Clipped ratios, of tokens or of sequences; its metric is the share of tokens that were clipped."""

    settings: Grpo | Gspo

    def loss(self, tokens: SampledTokens) -> tuple[Tensor, Piece]:
        """Compute a micro-batch's share; see `grpo_loss` and `gspo_loss`."""
        loss = grpo_loss if self.settings.name == "grpo" else gspo_loss
        return loss(tokens, clip_low=self.settings.clip_low, clip_high=self.settings.clip_high)

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Compute the share of the tokens of all ranks whose gradient the clip removed."""
        clipped = sum(piece["clipped_sum"].item() for piece in pieces)
        return {CLIP_FRACTION: sum_over_ranks(torch.tensor(clipped, dtype=torch.float64)).item() / num_tokens}


def objective_of(algorithm: AlgorithmConfig) -> Objective:
    """Make the objective that a stage's settings name."""
    return SapoObjective(algorithm) if isinstance(algorithm, Sapo) else ClippedObjective(algorithm)
