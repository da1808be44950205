"""What the losses share: ratios, importance weights, and sums over sequences of packed tokens."""

import torch
from torch import Tensor

#: |log r| is cut here before exp, which float32 would overflow at 88. A token that far off its
#: sampling policy has a broken log-prob; with the cut it has no gradient instead of a NaN.
MAX_LOG_RATIO = 20.0


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The log-ratio log r = log π_θ − log π_old, cut to ±MAX_LOG_RATIO.

    Args:
        logprobs: [T], with gradient.
        old_logprobs: [T]; no gradient flows into it.

    Returns:
        [T]; where it was cut, the gradient is zero.
    """
    return (logprobs - old_logprobs.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def truncated_importance_weights(old_logprobs: Tensor, engine_logprobs: Tensor, cap: float = 2.0) -> Tensor:
    """Weights w = min(π_old(y) / π_engine(y), cap): the correction for sampling from another implementation.

    The engine samples from its own rendering of the old policy; the weights make the learner's estimate
    unbiased up to the cap, which bounds the variance.

    Args:
        old_logprobs: [T] log-probs of the policy that sampled, as the learner computes them.
        engine_logprobs: [T] the engine's log-probs of the same tokens.
        cap: Largest weight, above 1.

    Returns:
        [T] in [0, cap], without gradient.

    Source:
        Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025);
        TRL's `vllm_importance_sampling_mode="token_truncate"`.
    """
    return log_ratio(old_logprobs, engine_logprobs).exp().clamp(max=cap).detach()


def sequence_lengths(sequence_ids: Tensor) -> Tensor:
    """Number of tokens of each sequence, [max id + 1]; 0 for an id without tokens."""
    return torch.bincount(sequence_ids)


def sum_of_sequence_means(values: Tensor, sequence_ids: Tensor) -> Tensor:
    """Σᵢ (1/|yᵢ|) Σₜ vᵢₜ over the sequences of this piece; a scalar.

    Args:
        values: [T].
        sequence_ids: [T].
    """
    return (values / sequence_lengths(sequence_ids)[sequence_ids]).sum()


def ratio_metrics(log_ratios: Tensor) -> dict[str, Tensor]:
    """Sums over this piece's tokens that say how far π_θ has moved from π_old.

    Returns:
        `num_tokens`: T. `kl_sum`: Σ (r − 1 − log r), the estimator of KL(π_old ‖ π_θ) that is unbiased
        and never negative (http://joschu.net/blog/kl-approx.html, "k3"); divided by `num_tokens`, both
        added up over the pieces, it is `kl/old_new`.
    """
    ratios = log_ratios.detach()
    return {
        "num_tokens": torch.tensor(float(len(ratios)), device=ratios.device),
        "kl_sum": (ratios.exp() - 1 - ratios).sum(),
    }
