"""Policy gradients with bounded ratios: GRPO clips that of each token, GSPO that of each sequence.

CISPO bounds the weight of a token's gradient instead, so that no token is left out.
"""

import torch
from torch import Tensor

from posttrain.objectives.packed import SampledTokens, sequence_lengths


def grpo_loss(
    tokens: SampledTokens, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute this piece's share of the GRPO loss, without a KL term.

    With r = π_θ(y) / π_old(y) of a token, Â its advantage and δ = `dual_clip` (∞ if None)::

        L = −mean(wᵢₜ min(min(rᵢₜ, δ) Âᵢₜ, clip(rᵢₜ, 1 − clip_low, 1 + clip_high) Âᵢₜ))

    where `mean` is that of `SampledTokens`: (1/N) Σᵢ (1/|yᵢ|) Σₜ in GRPO's paper, (1/T) Σᵢ Σₜ in DAPO's, and
    (1/(N·L)) Σᵢ Σₜ with a constant L in Dr. GRPO's.

    Args:
        tokens: The sampled tokens of this piece.
        clip_low: How far below 1 a ratio may go before it is clipped.
        clip_high: How far above 1 a ratio may go before it is clipped.
        dual_clip: The ratio above which tokens of negative advantage have no gradient either.

    Returns:
        The scalar share, and detached metrics: the numbers of tokens whose gradient was removed below
        (`clipped_low_sum`), above (`clipped_high_sum`) and by the dual clip (`clipped_dual_sum`).

    Source:
        Shao et al., arXiv 2402.03300, eq. 3; two clip bounds and the mean over tokens from Yu et al. (DAPO),
        arXiv 2503.14476, eq. 8; the constant normaliser from Liu et al. (Dr. GRPO), arXiv 2503.20783, §3.2;
        the dual clip from Ye et al., arXiv 1912.09729, eq. 5, which TRL calls `delta`.
    """
    ratios = tokens.log_ratios.exp()
    objective, clipped = _clipped_objective(ratios, tokens.advantages, clip_low, clip_high, dual_clip)
    return tokens.share(objective), clipped


def gspo_loss(
    tokens: SampledTokens, *, clip_low: float = 3e-4, clip_high: float = 4e-4, dual_clip: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute this piece's share of the GSPO loss.

    With s the geometric mean of a sequence's token ratios, Â its advantage and δ = `dual_clip` (∞ if None)::

        sᵢ = exp((1/|yᵢ|) Σₜ log rᵢₜ)
        L  = −mean(wᵢₜ min(min(sᵢ, δ) Âᵢₜ, clip(sᵢ, 1 − clip_low, 1 + clip_high) Âᵢₜ))

    Args:
        tokens: The sampled tokens of this piece.
        clip_low: How far below 1 a sequence's ratio may go before it is clipped; it takes bounds that are
            orders of magnitude smaller than those of a token's ratio.
        clip_high: How far above 1 a sequence's ratio may go before it is clipped.
        dual_clip: As in `grpo_loss`.

    Returns:
        The scalar share, and detached metrics as those of `grpo_loss`, which count the tokens of clipped
        sequences.

    Source:
        Zheng et al., arXiv 2507.18071, eq. 5–7; the bounds of its §5.1.
    """
    log_ratios, ids = tokens.log_ratios, tokens.sequence_ids
    lengths = sequence_lengths(ids)
    # The mean of an id without tokens is never looked up; the clamp keeps it from being 0/0.
    means = log_ratios.new_zeros(len(lengths)).index_add(0, ids, log_ratios) / lengths.clamp(min=1)
    ratios = means.exp()[ids]
    objective, clipped = _clipped_objective(ratios, tokens.advantages, clip_low, clip_high, dual_clip)
    return tokens.share(objective), clipped


def cispo_loss(tokens: SampledTokens, *, clip_high: float = 4.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute this piece's share of the CISPO loss: a policy gradient whose tokens have bounded weights.

    With r = π_θ(y) / π_old(y) of a token, Â its advantage, and no gradient through sg::

        L = −mean(wᵢₜ sg(min(rᵢₜ, 1 + clip_high)) Âᵢₜ log π_θ(yᵢₜ))

    A clipped objective leaves out the tokens that have moved the most, which tend to be rare and decisive
    ones; here they go on teaching, with a bounded weight.

    Args:
        tokens: The sampled tokens of this piece.
        clip_high: How far above 1 a token's weight may go.

    Returns:
        The scalar share, and detached metrics: `clipped_high_sum`, the number of tokens whose weight was cut.

    Source:
        MiniMax-M1, arXiv 2506.13585, eq. 4–5 with no lower bound, as in its experiments. The default is
        that of ScaleRL (arXiv 2510.13786), 5 for the bound itself, which is what TRL calls `epsilon_high`.
    """
    ratios = tokens.log_ratios.exp().detach()
    weights = ratios.clamp(max=1 + clip_high)
    objective = weights * tokens.advantages * tokens.logprobs
    return tokens.share(objective), {"clipped_high_sum": (ratios > weights).sum()}


def _clipped_objective(
    ratios: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute min(min(r, δ) Â, clip(r) Â), [T], and how many tokens each bound left without a gradient."""
    plain = ratios.clamp(max=dual_clip) * advantages if dual_clip is not None else ratios * advantages
    bounded = ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    clipped = (bounded < plain).detach()
    counts = {
        "clipped_low_sum": (clipped & (advantages < 0)).sum(),
        "clipped_high_sum": (clipped & (advantages > 0)).sum(),
    }
    if dual_clip is not None:
        counts["clipped_dual_sum"] = ((ratios > dual_clip) & (advantages < 0)).sum().detach()
    return torch.minimum(plain, bounded), counts
