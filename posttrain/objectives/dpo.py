"""Direct preference optimisation: prefer one answer to another, relative to a reference model."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

DpoLossType = Literal["sigmoid", "ipo"]


@dataclass(frozen=True)
class PairLogRatios:
    """What the losses need of P pairs of answers.

    Attributes:
        chosen: [P] Σₜ (log π_θ − log π_ref) over the tokens of the preferred answers, with gradient.
        rejected: [P] the same of the answers that lost to them.
        chosen_lengths: [P] tokens of the preferred answers.
        rejected_lengths: [P] tokens of the others.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor


def dpo_loss(
    pairs: PairLogRatios, num_pairs: Tensor | float, beta: float = 0.1, loss_type: DpoLossType = "sigmoid"
) -> Tensor:
    """This piece's share of the preference loss: its pairs' losses, divided by all pairs of the batch.

    With h(y) = Σₜ (log π_θ(yₜ) − log π_ref(yₜ)), y⁺ preferred to y⁻::

        sigmoid:  −log σ(β (h(y⁺) − h(y⁻)))
        ipo:      (h(y⁺)/|y⁺| − h(y⁻)/|y⁻| − 1/(2β))²

    Args:
        pairs: This piece's pairs.
        num_pairs: Pairs of the global batch.
        beta: How closely the policy is held to the reference.
        loss_type: `sigmoid` or `ipo`.

    Returns:
        The scalar share; the shares of all pieces add up to the mean over the pairs.

    Source:
        Rafailov et al. (arXiv 2305.18290), equation 7; Azar et al. (arXiv 2310.12036), equation 17, with the
        mean over tokens in place of the sum, as TRL has it after asking the authors.
    """
    if loss_type == "sigmoid":
        return -logsigmoid(beta * (pairs.chosen - pairs.rejected)).sum() / num_pairs
    margin = pairs.chosen / pairs.chosen_lengths - pairs.rejected / pairs.rejected_lengths
    return ((margin - 1 / (2 * beta)) ** 2).sum() / num_pairs


def dpo_metrics(pairs: PairLogRatios, beta: float) -> dict[str, Tensor]:
    """Sums over this piece's pairs that say whether the policy tells the answers apart.

    The reward of an answer is β h(y), up to a constant of its prompt.

    Returns:
        `rewards/chosen` and `rewards/rejected`; `rewards/margins`, their differences; and
        `rewards/accuracies`, the number of pairs whose preferred answer has the higher reward. Divided by
        the number of pairs, all added up over the pieces, they are TRL's figures of these names.
    """
    chosen, rejected = beta * pairs.chosen.detach(), beta * pairs.rejected.detach()
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margins": (chosen - rejected).sum(),
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype).sum(),
    }
