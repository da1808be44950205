"""Direct preference optimisation: learn to prefer one answer to another, relative to a reference model."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

DpoLossType = Literal["sigmoid", "ipo"]


@dataclass(frozen=True)
class PairLogRatios:
    """Log-ratios and lengths of P pairs of answers.

    Attributes:
        chosen: [P] Σₜ (log π_θ − log π_ref) over the tokens of each preferred answer, with gradient.
        rejected: [P] the same for each rejected answer.
        chosen_lengths: [P] number of tokens of each preferred answer.
        rejected_lengths: [P] number of tokens of each rejected answer.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor


def dpo_loss(
    pairs: PairLogRatios, num_pairs: Tensor | float, beta: float = 0.1, loss_type: DpoLossType = "sigmoid"
) -> Tensor:
    """Compute this piece's share of the preference loss: the sum over its pairs, divided by all pairs.

    With h(y) = Σₜ (log π_θ(yₜ) − log π_ref(yₜ)), y⁺ preferred to y⁻::

        sigmoid:  −log σ(β (h(y⁺) − h(y⁻)))
        ipo:      (h(y⁺)/|y⁺| − h(y⁻)/|y⁻| − 1/(2β))²

    Args:
        pairs: This piece's pairs.
        num_pairs: Number of pairs in the global batch.
        beta: How closely the policy is held to the reference model; larger is closer.
        loss_type: Which of the two formulas to use.

    Returns:
        The scalar share; the shares of all pieces add up to the mean over the pairs.

    Source:
        Rafailov et al. (arXiv 2305.18290), equation 7; Azar et al. (arXiv 2310.12036), equation 17, with the
        mean over tokens in place of the sum, as TRL implements it on the authors' advice.
    """
    if loss_type == "sigmoid":
        return -logsigmoid(beta * (pairs.chosen - pairs.rejected)).sum() / num_pairs
    margin = pairs.chosen / pairs.chosen_lengths - pairs.rejected / pairs.rejected_lengths
    return ((margin - 1 / (2 * beta)) ** 2).sum() / num_pairs


def dpo_metrics(pairs: PairLogRatios, beta: float) -> dict[str, Tensor]:
    """Sum up, over this piece's pairs, how well the policy tells the answers apart.

    The implicit reward of an answer is β h(y), up to a constant that depends on the prompt alone.

    Args:
        pairs: This piece's pairs.
        beta: As in `dpo_loss`.

    Returns:
        The sums of the rewards, `rewards/chosen` and `rewards/rejected`; that of their differences,
        `rewards/margins`; and `rewards/accuracies`, the number of pairs whose preferred answer has the
        higher reward. Added up over the pieces and divided by the number of pairs, they are TRL's metrics
        of these names.
    """
    chosen, rejected = beta * pairs.chosen.detach(), beta * pairs.rejected.detach()
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margins": (chosen - rejected).sum(),
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype).sum(),
    }
