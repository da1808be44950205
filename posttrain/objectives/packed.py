"""Parts that several losses use: ratios, importance weights, and sums over sequences of packed tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

#: |log r| is cut to this before exp, which overflows float32 at 88. A token that is so far from its
#: sampling policy has a broken log-prob; with the cut it has no gradient instead of a NaN.
MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class SampledTokens:
    """The sampled tokens of a micro-batch, and what the policy losses need to know of each.

    Attributes:
        logprobs: [T] log π_θ of the sampled tokens, with gradient.
        old_logprobs: [T] log π_old, computed by the learner before the first mini-batch.
        advantages: [T] Â, for every token that of its sequence.
        sequence_ids: [T] the sequence of each token.
        normalizer: Z of the mean over the global batch, see `mean`.
        importance_weights: [T] w, see `truncated_importance_weights`; None means 1 everywhere.
        per_sequence: Whether the mean is one of the sequences' means.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    sequence_ids: Tensor
    normalizer: float
    importance_weights: Tensor | None = None
    per_sequence: bool = True

    @property
    def log_ratios(self) -> Tensor:
        """[T] log r = log π_θ − log π_old, cut as `log_ratio` does."""
        return log_ratio(self.logprobs, self.old_logprobs)

    def mean(self, values: Tensor) -> Tensor:
        """Compute this piece's share of a mean over the global batch.

        Args:
            values: [T] v, one per token.

        Returns:
            (1/Z) Σᵢ (1/|yᵢ|) Σₜ vᵢₜ if the mean is one of sequences, Z being their number; else
            (1/Z) Σᵢ Σₜ vᵢₜ.
        """
        total = sum_of_sequence_means(values, self.sequence_ids) if self.per_sequence else values.sum()
        return total / self.normalizer

    def share(self, objective: Tensor) -> Tensor:
        """Turn an objective of each token into this piece's share of the loss.

        Args:
            objective: [T] the value to maximise.

        Returns:
            −`mean` of wᵢₜ · objectiveᵢₜ, a scalar.
        """
        if self.importance_weights is not None:
            objective = objective * self.importance_weights
        return -self.mean(objective)


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Compute the log-ratio log r = log π_θ − log π_old, cut to ±MAX_LOG_RATIO.

    Args:
        logprobs: [T] log π_θ, with gradient.
        old_logprobs: [T] log π_old; no gradient flows into it.

    Returns:
        [T] log r, with gradient zero where it was cut.
    """
    return (logprobs - old_logprobs.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def truncated_importance_weights(old_logprobs: Tensor, engine_logprobs: Tensor, cap: float = 2.0) -> Tensor:
    """Compute the weights w = min(π_old(y) / π_engine(y), cap).

    The engine's implementation of the old policy differs a little from the learner's. The weights correct
    the learner's estimate for that; it is unbiased but for the cap, which bounds the variance.

    Args:
        old_logprobs: [T] log-probs of the policy that sampled, as the learner computes them.
        engine_logprobs: [T] the engine's log-probs of the same tokens.
        cap: Largest weight, above 1.

    Returns:
        [T] weights in [0, cap], without gradient.

    Source:
        Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025);
        TRL's `vllm_importance_sampling_mode="token_truncate"`.
    """
    return log_ratio(old_logprobs, engine_logprobs).exp().clamp(max=cap).detach()


def sequence_lengths(sequence_ids: Tensor) -> Tensor:
    """Count the tokens of each sequence: [largest id + 1], 0 for an id without tokens."""
    return torch.bincount(sequence_ids)


def sum_of_sequence_means(values: Tensor, sequence_ids: Tensor) -> Tensor:
    """Compute Σᵢ (1/|yᵢ|) Σₜ vᵢₜ over the sequences of this piece.

    Args:
        values: [T] v, one per token.
        sequence_ids: [T] the sequence of each token.

    Returns:
        A scalar.
    """
    return (values / sequence_lengths(sequence_ids)[sequence_ids]).sum()


def ratio_metrics(log_ratios: Tensor) -> dict[str, Tensor]:
    """Sum up, over this piece's tokens, how far π_θ has moved from π_old.

    Args:
        log_ratios: [T] log r.

    Returns:
        `num_tokens`: T. `kl_sum`: Σ (r − 1 − log r), the estimator of KL(π_old ‖ π_θ) that is unbiased
        and never negative (http://joschu.net/blog/kl-approx.html, "k3"). The metric `kl/old_new` is the
        quotient of the two, each added up over the pieces.
    """
    ratios = log_ratios.detach()
    return {
        "num_tokens": torch.tensor(float(len(ratios)), device=ratios.device),
        "kl_sum": (ratios.exp() - 1 - ratios).sum(),
    }
