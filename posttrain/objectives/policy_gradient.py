"""Policy gradients with a clipped ratio: GRPO clips each token's, GSPO each sequence's."""

import torch
from torch import Tensor

from posttrain.objectives.packed import log_ratio, ratio_metrics, sequence_lengths, sum_of_sequence_means


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    importance_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This piece's share of the GRPO loss, without a KL term.

    With r = π_θ(y) / π_old(y) of a token and Â its sequence's advantage::

        L = −(1/N) Σᵢ (1/|yᵢ|) Σₜ wᵢₜ min(rᵢₜ Âᵢ, clip(rᵢₜ, 1 − clip_low, 1 + clip_high) Âᵢ)

    Args:
        logprobs: [T] log π_θ of the sampled tokens, with gradient.
        old_logprobs: [T] log π_old, by the learner, before the first mini-batch.
        advantages: [T] each token has its sequence's.
        sequence_ids: [T].
        num_sequences: N, sequences in the global batch.
        clip_low: How far below 1 a ratio counts.
        clip_high: How far above 1 a ratio counts.
        importance_weights: [T] w, see `truncated_importance_weights`; 1 where None.

    Returns:
        The scalar share, and detached metrics: `clipped_sum`, the number of tokens whose gradient the
        clip removed; those of `ratio_metrics`.

    Source:
        Shao et al., arXiv 2402.03300, eq. 3; two clip bounds from Yu et al., arXiv 2503.14476.
    """
    log_ratios = log_ratio(logprobs, old_logprobs)
    objective, clipped = _clipped_objective(log_ratios.exp(), advantages, clip_low, clip_high)
    return _share(objective, clipped, log_ratios, sequence_ids, num_sequences, importance_weights)


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    importance_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This piece's share of the GSPO loss.

    With s the geometric mean of a sequence's token ratios and Â its advantage::

        sᵢ = exp((1/|yᵢ|) Σₜ log rᵢₜ)
        L  = −(1/N) Σᵢ (1/|yᵢ|) Σₜ wᵢₜ min(sᵢ Âᵢ, clip(sᵢ, 1 − clip_low, 1 + clip_high) Âᵢ)

    Args:
        logprobs: [T] log π_θ of the sampled tokens, with gradient.
        old_logprobs: [T] log π_old, by the learner, before the first mini-batch.
        advantages: [T] each token has its sequence's.
        sequence_ids: [T].
        num_sequences: N, sequences in the global batch.
        clip_low: How far below 1 a sequence's ratio counts; orders of magnitude less than a token's.
        clip_high: How far above 1 a sequence's ratio counts.
        importance_weights: [T] w, see `truncated_importance_weights`; 1 where None.

    Returns:
        As `grpo_loss`; `clipped_sum` counts the tokens of clipped sequences.

    Source:
        Zheng et al., arXiv 2507.18071, eq. 5–7; the bounds of its §5.1.
    """
    log_ratios = log_ratio(logprobs, old_logprobs)
    lengths = sequence_lengths(sequence_ids)
    # An id without tokens has the sum 0 and is never looked up; the clamp keeps it from being 0/0.
    means = log_ratios.new_zeros(len(lengths)).index_add(0, sequence_ids, log_ratios) / lengths.clamp(min=1)
    ratios = means.exp()[sequence_ids]
    objective, clipped = _clipped_objective(ratios, advantages, clip_low, clip_high)
    return _share(objective, clipped, log_ratios, sequence_ids, num_sequences, importance_weights)


def _clipped_objective(
    ratios: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """min(r Â, clip(r) Â) and where the clip is active, both [T]."""
    plain = ratios * advantages
    bounded = ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    return torch.minimum(plain, bounded), (bounded < plain).detach()


def _share(
    objective: Tensor,
    clipped: Tensor,
    log_ratios: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    importance_weights: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    if importance_weights is not None:
        objective = objective * importance_weights
    loss = -sum_of_sequence_means(objective, sequence_ids) / num_sequences
    return loss, {"clipped_sum": clipped.sum()} | ratio_metrics(log_ratios)
