"""Policy gradients with a clipped ratio: GRPO clips that of each token, GSPO that of each sequence."""

import torch
from torch import Tensor

from posttrain.objectives.packed import SampledTokens, sequence_lengths


def grpo_loss(
    tokens: SampledTokens, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute this piece's share of the GRPO loss, without a KL term.

    With r = π_θ(y) / π_old(y) of a token and Â its sequence's advantage::

        L = −(1/N) Σᵢ (1/|yᵢ|) Σₜ wᵢₜ min(rᵢₜ Âᵢ, clip(rᵢₜ, 1 − clip_low, 1 + clip_high) Âᵢ)

    Args:
        tokens: The sampled tokens of this piece.
        clip_low: How far below 1 a ratio may go before it is clipped.
        clip_high: How far above 1 a ratio may go before it is clipped.

    Returns:
        The scalar share, and detached metrics: `clipped_sum`, the number of tokens whose gradient the
        clip removed.

    Source:
        Shao et al., arXiv 2402.03300, eq. 3; two clip bounds from Yu et al., arXiv 2503.14476.
    """
    log_ratios = tokens.log_ratios
    objective, clipped = _clipped_objective(log_ratios.exp(), tokens.advantages, clip_low, clip_high)
    return tokens.share(objective), {"clipped_sum": clipped.sum()}


def gspo_loss(
    tokens: SampledTokens, *, clip_low: float = 3e-4, clip_high: float = 4e-4
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute this piece's share of the GSPO loss.

    With s the geometric mean of a sequence's token ratios and Â its advantage::

        sᵢ = exp((1/|yᵢ|) Σₜ log rᵢₜ)
        L  = −(1/N) Σᵢ (1/|yᵢ|) Σₜ wᵢₜ min(sᵢ Âᵢ, clip(sᵢ, 1 − clip_low, 1 + clip_high) Âᵢ)

    Args:
        tokens: The sampled tokens of this piece.
        clip_low: How far below 1 a sequence's ratio may go before it is clipped; it takes bounds that are
            orders of magnitude smaller than those of a token's ratio.
        clip_high: How far above 1 a sequence's ratio may go before it is clipped.

    Returns:
        The scalar share, and detached metrics as those of `grpo_loss`; `clipped_sum` counts the tokens of
        clipped sequences.

    Source:
        Zheng et al., arXiv 2507.18071, eq. 5–7; the bounds of its §5.1.
    """
    log_ratios, ids = tokens.log_ratios, tokens.sequence_ids
    lengths = sequence_lengths(ids)
    # The mean of an id without tokens is never looked up; the clamp keeps it from being 0/0.
    means = log_ratios.new_zeros(len(lengths)).index_add(0, ids, log_ratios) / lengths.clamp(min=1)
    objective, clipped = _clipped_objective(means.exp()[ids], tokens.advantages, clip_low, clip_high)
    return tokens.share(objective), {"clipped_sum": clipped.sum()}


def _clipped_objective(
    ratios: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Compute min(r Â, clip(r) Â), and where the clip is active, both [T]."""
    plain = ratios * advantages
    bounded = ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    return torch.minimum(plain, bounded), (bounded < plain).detach()
