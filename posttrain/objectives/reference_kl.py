"""How far the policy is from a reference, estimated at its own samples: as a loss, or as part of the reward.

The two places take different estimators, because what is differentiated differs. With p the policy, q the
reference and y drawn from p, the expected gradients at one token are::

    k1 in the reward   E[(log p − log q) ∇ log p]  =  ∇ KL(p ‖ q)
    k3 in the loss     E[∇(q/p − 1 − log q/p)]     =  ∇ KL(q ‖ p)
    k1 in the loss     E[∇(log p − log q)]         =  0, whatever p and q are
    k3 in the reward   E[k3 ∇ log p]               =  ∇ KL(p ‖ q) − ∇ KL(q ‖ p), which vanishes near q

So the last two hold nothing near the reference.

Source:
    Schulman, "Approximating KL divergence" (2020), for the estimators; Liu et al. (arXiv 2510.01555) and
    Shah et al. (arXiv 2512.21852) for their gradients.
"""

from typing import Literal

from torch import Tensor

from posttrain.objectives.packed import log_ratio

Estimator = Literal["k1", "k3"]


def reference_kl(logprobs: Tensor, reference_logprobs: Tensor, estimator: Estimator) -> Tensor:
    """Estimate KL(policy ‖ reference) at each sampled token.

    With r = q(y) / p(y), p the policy and q the reference: k1 = −log r, and k3 = r − 1 − log r, which is
    never negative. Both have the divergence as their mean over the policy's samples. |log r| is cut as
    `log_ratio` does.

    Args:
        logprobs: [T] log p of the sampled tokens, with gradient.
        reference_logprobs: [T] log q of the same tokens.
        estimator: Which of the two.

    Returns:
        [T] estimates in nats.
    """
    log_ratios = log_ratio(logprobs, reference_logprobs)
    return log_ratios if estimator == "k1" else (-log_ratios).exp() - 1 + log_ratios
