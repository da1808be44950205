"""Distillation from a teacher's answers, and from the log-probs of the teacher's likeliest tokens."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.objectives.sft import Normalization, sft_loss


@dataclass(frozen=True)
class TopLogprobs:
    """The teacher's and the student's distributions over K candidate tokens, and all other tokens as one.

    Attributes:
        teacher: [T, K] the teacher's log-probs of its K likeliest tokens.
        student: [T, K] the student's log-probs of the same tokens, with gradient.
        student_tail: [T] the student's log-prob of all other tokens together, with gradient; −inf if there
            are no others.
    """

    teacher: Tensor
    student: Tensor
    student_tail: Tensor


def top_k_kl(top: TopLogprobs) -> Tensor:
    """Compute the forward KL divergence at each token, over the candidates and the rest.

    With q the teacher and p the student, and q̄ = 1 − Σₖ qₖ, p̄ = 1 − Σₖ pₖ::

        KL = Σₖ qₖ (log qₖ − log pₖ) + q̄ (log q̄ − log p̄)

    All other tokens count as one. So the result is never negative, at most the divergence over the whole
    vocabulary, and equal to that if every token is a candidate.

    Args:
        top: The two distributions.

    Returns:
        [T] divergences in nats.

    Source:
        Hinton et al. (arXiv 1503.02531) for the divergence at temperature 1. The term for the rest is ours:
        if both distributions were renormalised over the candidates, p̄ could grow without any loss.
    """
    shares = top.teacher.exp()
    rest = (1 - shares.sum(-1)).clamp(min=0)  # rounding may carry the sum above 1
    known = torch.where(shares > 0, shares * (top.teacher - top.student), 0).sum(-1)
    # Without other tokens `rest` is a rounding error, and log 0 must not enter the gradient.
    left = (rest > 0) & (top.student_tail > -torch.inf)
    tail = torch.where(left, top.student_tail, 0)
    return known + torch.where(left, rest * (torch.where(left, rest, 1).log() - tail), 0)


#: Least probability of all tokens together that are no candidates: what is left of 1 in float32.
LEAST_REST = 2.0**-23


def top_k_jsd(top: TopLogprobs, beta: float) -> Tensor:
    """Compute the divergence of `generalized_jsd` at each token, over the candidates and the rest as one.

    With q the teacher, p the student, m = (1 − β) p + β q, and sums over candidates and rest::

        β = 0       KL(q ‖ p)          β = 1       KL(p ‖ q)
        otherwise   β KL(q ‖ m) + (1 − β) KL(p ‖ m)

    To merge tokens never adds to a divergence: it is at most that over the whole vocabulary, and equal to it
    if every token is a candidate. A teacher's rest below `LEAST_REST` is rounding, and counts as that.

    Args:
        top: The two distributions. A candidate of which the teacher's log-prob is −inf does not count, so
            that a token can be named twice.
        beta: β, between 0 and 1.

    Returns:
        [T] divergences in nats, with gradient; never negative but for rounding.

    Source:
        Agarwal et al. (arXiv 2306.13649) for the kinds. The term for the rest is ours, as in `top_k_kl`.
    """
    shares = top.teacher.double().exp()
    rest = (1 - shares.sum(-1)).clamp(min=LEAST_REST).log().to(top.student.dtype)
    others = top.student_tail > -torch.inf
    counts = torch.cat([top.teacher > -torch.inf, others[:, None]], -1)
    teacher = torch.cat([top.teacher.to(top.student.dtype), rest[:, None]], -1).masked_fill(~counts, 0)
    student = torch.cat([top.student, torch.where(others, top.student_tail, 0)[:, None]], -1)
    student = student.masked_fill(~counts, 0)
    of_teacher, of_student = (each.exp() * counts for each in (teacher, student))
    if beta == 0:
        return (of_teacher * (teacher - student)).sum(-1)
    if beta == 1:
        return (of_student * (student - teacher)).sum(-1)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    to_teacher = (of_teacher * (teacher - mixture)).sum(-1)
    return beta * to_teacher + (1 - beta) * (of_student * (student - mixture)).sum(-1)


def distillation_loss(
    logprobs: Tensor,
    divergences: Tensor,
    sequence_ids: Tensor,
    normalizer: Tensor | float,
    normalization: Normalization,
    top_k_weight: float,
) -> Tensor:
    """Compute this piece's share of a mix of likelihood and divergence.

    It is `sft_loss` with the negative log-likelihood of token t of sample i replaced by, with
    w = `top_k_weight`::

        ℓᵢₜ = (1 − w)·(−log πᵢₜ) + w·KLᵢₜ

    Args:
        logprobs: [T] log π of the teacher's tokens, with gradient.
        divergences: [T] the result of `top_k_kl` at the same tokens, with gradient.
        sequence_ids: [T] the sample of each token.
        normalizer: Z over the global batch: the sum of `sft_normalizer` over its pieces.
        normalization: As in `sft_loss`.
        top_k_weight: w, the weight of the divergence, in [0, 1].

    Returns:
        The scalar share.
    """
    mixed = (1 - top_k_weight) * logprobs - top_k_weight * divergences
    return sft_loss(mixed, sequence_ids, normalizer, normalization)
