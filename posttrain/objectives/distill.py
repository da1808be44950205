"""Distillation from a teacher's answers, and from the log-probs that it gave its likeliest tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.objectives.sft import Normalization, sft_loss


@dataclass(frozen=True)
class TopLogprobs:
    """Two distributions over the same candidates: K tokens, and all others as one.

    Attributes:
        teacher: [T, K] the teacher's log-probs of its K likeliest tokens.
        student: [T, K] the student's log-probs of the same tokens, with gradient.
        student_tail: [T] the student's log-prob of all other tokens together, with gradient; −inf where
            there are none.
    """

    teacher: Tensor
    student: Tensor
    student_tail: Tensor


def top_k_kl(top: TopLogprobs) -> Tensor:
    """Forward KL divergence of each token's distribution, over the candidates and the rest.

    With q the teacher and p the student, and q̄ = 1 − Σₖ qₖ, p̄ = 1 − Σₖ pₖ::

        KL = Σₖ qₖ (log qₖ − log pₖ) + q̄ (log q̄ − log p̄)

    It is the divergence after all other tokens have been made one, hence never negative and at most the
    divergence over the whole vocabulary, which it is where the candidates are the whole vocabulary.

    Args:
        top: The distributions.

    Returns:
        [T] in nats.

    Source:
        Hinton et al. (arXiv 1503.02531) for the divergence at temperature 1; the bucket for the rest keeps
        p̄ from growing at no cost, as it does where both are renormalised over the candidates.
    """
    shares = top.teacher.exp()
    rest = (1 - shares.sum(-1)).clamp(min=0)  # rounding may carry the sum above 1
    known = torch.where(shares > 0, shares * (top.teacher - top.student), 0).sum(-1)
    # Without other tokens what is left is rounding; and where nothing is left, no log is looked at.
    left = (rest > 0) & (top.student_tail > -torch.inf)
    tail = torch.where(left, top.student_tail, 0)
    return known + torch.where(left, rest * (torch.where(left, rest, 1).log() - tail), 0)


def distillation_loss(
    logprobs: Tensor,
    divergences: Tensor,
    sequence_ids: Tensor,
    normalizer: Tensor | float,
    normalization: Normalization,
    top_k_weight: float,
) -> Tensor:
    """This piece's share of the mix of likelihood and divergence.

    With w = `top_k_weight`, the loss of token t of sample i, in the place that its negative log-likelihood
    has in `sft_loss`, which says how the tokens are weighed::

        ℓᵢₜ = (1 − w)·(−log πᵢₜ) + w·KLᵢₜ

    Args:
        logprobs: [T] log π of the teacher's tokens, with gradient.
        divergences: [T] `top_k_kl` of their distributions, with gradient.
        sequence_ids: [T] the sample of each token.
        normalizer: Over the global batch: `sft_normalizer` added up over its pieces.
        normalization: As in `sft_loss`.
        top_k_weight: w, in [0, 1].

    Returns:
        The scalar share.
    """
    mixed = (1 - top_k_weight) * logprobs - top_k_weight * divergences
    return sft_loss(mixed, sequence_ids, normalizer, normalization)
