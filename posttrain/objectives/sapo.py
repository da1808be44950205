"""Soft Adaptive Policy Optimization: a smooth gate on the ratio in place of a clip."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from posttrain.objectives.packed import SampledTokens

GATE_QUANTILES = {"p05": 0.05, "p50": 0.50, "p95": 0.95}


def sapo_loss(
    tokens: SampledTokens, *, tau_pos: float = 1.0, tau_neg: float = 1.05
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute this piece's share of the SAPO loss.

    With r = π_θ(y) / π_old(y) of a token, Â its sequence's advantage, and τ = τ_pos where Â > 0, else
    τ_neg::

        f(r) = σ(τ (r − 1)) · 4/τ
        L    = −(1/N) Σᵢ (1/|yᵢ|) Σₜ wᵢₜ f(rᵢₜ) Âᵢ

    Its gradient is −(1/N) Σᵢ (1/|yᵢ|) Σₜ wᵢₜ · 4p(1−p) · rᵢₜ Âᵢ ∇log π_θ, p = σ(τ(r−1)). So relative to
    a plain policy gradient each token has the weight 4p(1−p). It is 1 on-policy, where SAPO's gradient is
    GRPO's, and falls the further the ratio is from 1, faster for negative advantages.

    Args:
        tokens: The sampled tokens of this piece.
        tau_pos: Temperature of the gate for positive advantages; the larger, the faster the weight falls.
        tau_neg: The same for all other advantages.

    Returns:
        The scalar share, and detached metrics: `gate_pos` and `gate_neg`, the weights 4p(1−p) of the
        tokens with positive and with negative advantage (see `gate_quantiles`).

    Source:
        Gao et al., arXiv 2511.20347.
    """
    log_ratios, advantages = tokens.log_ratios, tokens.advantages
    tau = torch.full_like(tokens.logprobs, tau_neg).masked_fill(advantages > 0, tau_pos).detach()
    p = torch.sigmoid(tau * (log_ratios.exp() - 1))
    objective = p * (4 / tau) * advantages
    gate = (4 * p * (1 - p)).detach()
    metrics = {"gate_pos": gate[advantages > 0], "gate_neg": gate[advantages < 0]}
    return tokens.share(objective), metrics


def gate_quantiles(pieces: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Compute quantiles of the gate's weights over several pieces: `gate/pos_p05` … `gate/neg_p95`.

    SAPO has no clip fraction that would show how far the policy has drifted; here a falling 5 % quantile
    does.

    Args:
        pieces: Metrics that `sapo_loss` returned.

    Returns:
        The quantiles by name; none for a sign of the advantage that no token has.
    """
    pieces = list(pieces)
    quantiles: dict[str, float] = {}
    for sign in ("pos", "neg"):
        gates = torch.cat([piece[f"gate_{sign}"] for piece in pieces]) if pieces else torch.empty(0)
        if len(gates):
            # Not torch.quantile, which refuses more than 2²⁴ values.
            ordered = gates.sort().values
            for name, share in GATE_QUANTILES.items():
                quantiles[f"gate/{sign}_{name}"] = ordered[round(share * (len(ordered) - 1))].item()
    return quantiles
