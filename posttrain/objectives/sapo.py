"""Soft Adaptive Policy Optimization: a smooth gate on the ratio in place of a clip."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from posttrain.objectives.packed import log_ratio, ratio_metrics, sum_of_sequence_means

GATE_QUANTILES = {"p05": 0.05, "p50": 0.50, "p95": 0.95}


def sapo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    importance_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This piece's share of the SAPO loss.

    With r = π_θ(y) / π_old(y) of a token, Â its sequence's advantage, and τ = τ_pos where Â > 0, else
    τ_neg::

        f(r) = σ(τ (r − 1)) · 4/τ
        L    = −(1/N) Σᵢ (1/|yᵢ|) Σₜ wᵢₜ f(rᵢₜ) Âᵢ

    Its gradient is −(1/N) Σᵢ (1/|yᵢ|) Σₜ wᵢₜ · 4p(1−p) · rᵢₜ Âᵢ ∇log π_θ, p = σ(τ(r−1)): relative to a
    plain policy gradient each token has the weight 4p(1−p), which is 1 on-policy (there SAPO's gradient
    is GRPO's) and fades on both sides, faster for negative advantages.

    Args:
        logprobs: [T] log π_θ of the sampled tokens, with gradient.
        old_logprobs: [T] log π_old, by the learner, before the first mini-batch.
        advantages: [T] each token has its sequence's.
        sequence_ids: [T].
        num_sequences: N, sequences in the global batch.
        tau_pos: Temperature of the gate for positive advantages.
        tau_neg: The same for the others; larger fades faster.
        importance_weights: [T] w, see `truncated_importance_weights`; 1 where None.

    Returns:
        The scalar share, and detached metrics: `gate_pos` and `gate_neg`, the weights 4p(1−p) of the
        tokens with positive and with negative advantage (see `gate_quantiles`); those of `ratio_metrics`.

    Source:
        Gao et al., arXiv 2511.20347.
    """
    log_ratios = log_ratio(logprobs, old_logprobs)
    tau = torch.full_like(logprobs, tau_neg).masked_fill(advantages > 0, tau_pos).detach()
    p = torch.sigmoid(tau * (log_ratios.exp() - 1))
    objective = p * (4 / tau) * advantages
    if importance_weights is not None:
        objective = objective * importance_weights
    gate = (4 * p * (1 - p)).detach()
    metrics = {"gate_pos": gate[advantages > 0], "gate_neg": gate[advantages < 0]}
    loss = -sum_of_sequence_means(objective, sequence_ids) / num_sequences
    return loss, metrics | ratio_metrics(log_ratios)


def gate_quantiles(pieces: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """The gate's quantiles over several pieces: `gate/pos_p05` … `gate/neg_p95`.

    SAPO has no clip fraction to show drift; a 5 % quantile that sinks shows it. A sign without tokens
    is left out.

    Args:
        pieces: Metrics that `sapo_loss` returned.
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
