"""The preference losses against their definitions, number by number in float64."""

import math
from collections.abc import Sequence

import pytest
import torch

from posttrain.objectives.dpo import PairLogRatios, dpo_loss, dpo_metrics

CHOSEN = [0.7, -1.3, 2.1, 0.0]
REJECTED = [-0.4, 0.9, 2.0, 0.0]
LENGTHS = [3, 1, 8, 2], [5, 2, 1, 2]


def pairs(rows: slice = slice(None)) -> PairLogRatios:
    def tensor(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values[rows], dtype=torch.float64)

    return PairLogRatios(tensor(CHOSEN), tensor(REJECTED), tensor(LENGTHS[0]), tensor(LENGTHS[1]))


def defined(loss_type: str, beta: float) -> float:
    total = 0.0
    for chosen, rejected, m, n in zip(CHOSEN, REJECTED, *LENGTHS, strict=True):
        if loss_type == "sigmoid":
            total += math.log1p(math.exp(-beta * (chosen - rejected)))
        else:
            total += (chosen / m - rejected / n - 1 / (2 * beta)) ** 2
    return total / len(CHOSEN)


@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_the_loss_is_its_definition(loss_type, beta):
    assert dpo_loss(pairs(), 4, beta, loss_type).item() == pytest.approx(defined(loss_type, beta), rel=1e-12)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_pieces_add_up_to_the_whole(loss_type):
    pieces = [dpo_loss(pairs(slice(i, i + 1)), 4, 0.1, loss_type) for i in range(4)]
    assert torch.stack(pieces).sum().item() == pytest.approx(
        dpo_loss(pairs(), 4, 0.1, loss_type).item(), rel=1e-12
    )


def test_at_the_reference_the_loss_is_log_2_and_nobody_is_right():
    zero = torch.zeros(3)
    at_reference = PairLogRatios(zero, zero, zero + 1, zero + 1)
    assert dpo_loss(at_reference, 3).item() == pytest.approx(math.log(2))
    assert dpo_metrics(at_reference, 0.1)["rewards/accuracies"] == 0


def test_metrics_are_sums_over_the_pairs():
    found = {name: value.item() for name, value in dpo_metrics(pairs(), beta=0.5).items()}
    assert found == pytest.approx(
        {
            "rewards/chosen": 0.5 * sum(CHOSEN),
            "rewards/rejected": 0.5 * sum(REJECTED),
            "rewards/margins": 0.5 * (sum(CHOSEN) - sum(REJECTED)),
            "rewards/accuracies": 2,
        }
    )
