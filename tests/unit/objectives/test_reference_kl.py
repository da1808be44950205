"""The distance to a reference: TRL's where it has it, and the gradients that make two places right."""

import pytest
import torch
from torch import Tensor

from posttrain.config import ReferenceKl, Sapo
from posttrain.objectives.reference_kl import Estimator, reference_kl
from posttrain.training.on_policy.objectives import KlTerm, LearnedRow, PenalisedTerm, SapoTerm
from posttrain.types import Trajectory
from tests.unit.objectives.packed_batches import CAP, LOSSES, Options, random_batch, trl_loss

KINDS = [("grpo", "sequence"), ("dapo", "token"), ("dr_grpo", "constant")]


@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize(("loss_type", "mean"), KINDS)
def test_in_the_loss_it_equals_trl(loss_type: str, mean: str, cap: float | None) -> None:
    batch = random_batch(1)
    reference = batch.old_logprobs + 0.3 * torch.linspace(-1, 1, len(batch.logprobs), dtype=torch.float64)
    theirs = trl_loss("grpo", batch, Options(loss_type, cap, beta=0.07, reference=reference))
    row = LearnedRow([], batch.tokens(cap, mean), reference)
    penalty, piece = KlTerm(ReferenceKl(coefficient=0.07)).loss(row)
    ours = LOSSES["grpo"](row.tokens)[0] + penalty
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    found, expected = (torch.autograd.grad(loss, batch.logprobs)[0] for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert piece["kl_sum"] == pytest.approx(reference_kl(batch.logprobs, reference, "k3").sum().item())


def test_in_the_reward_each_token_pays_for_itself() -> None:
    batch = random_batch(2)
    reference = batch.old_logprobs - 0.2
    term = PenalisedTerm(ReferenceKl(coefficient=0.5, place="reward"), SapoTerm(Sapo(name="sapo")))
    loss, piece = term.loss(LearnedRow([], batch.tokens(), reference))
    batch.advantages = batch.advantages - 0.5 * 0.2
    torch.testing.assert_close(loss, LOSSES["sapo"](batch.tokens())[0], rtol=1e-12, atol=0)
    assert {"gate_pos", "kl_sum"} <= piece.keys()
    assert term.teaches(Trajectory("s", "t", 0, 0, advantage=0.0))


def distributions(spread: float) -> tuple[Tensor, Tensor]:
    """A policy of eight tokens as logits with gradient, and a reference as log-probs."""
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(8, generator=generator, dtype=torch.float64) for _ in range(2))
    return logits.requires_grad_(), (logits.detach() + spread * other).log_softmax(0)


def expected_gradient(logits: Tensor, reference: Tensor, estimator: Estimator, place: str) -> Tensor:
    """The gradient's expectation over the policy's samples: summed over all of them, exactly."""
    logprobs = logits.log_softmax(0)
    estimates = reference_kl(logprobs, reference, estimator)
    if place == "reward":  # minus an advantage of minus the estimate
        estimates = estimates.detach() * logprobs
    (gradient,) = torch.autograd.grad((logprobs.detach().exp() * estimates).sum(), logits)
    return gradient


def divergence_gradient(logits: Tensor, reference: Tensor, backward: bool) -> Tensor:
    logprobs = logits.log_softmax(0)
    first, second = (logprobs, reference) if backward else (reference, logprobs)
    (gradient,) = torch.autograd.grad((first.exp() * (first - second)).sum(), logits)
    return gradient


def test_the_places_that_are_allowed_have_the_gradient_of_a_divergence() -> None:
    logits, reference = distributions(0.8)
    in_reward = expected_gradient(logits, reference, "k1", "reward")
    torch.testing.assert_close(in_reward, divergence_gradient(logits, reference, backward=True))
    in_loss = expected_gradient(logits, reference, "k3", "loss")
    torch.testing.assert_close(in_loss, divergence_gradient(logits, reference, backward=False))


def test_the_places_that_are_refused_hold_nothing() -> None:
    logits, reference = distributions(0.8)
    assert expected_gradient(logits, reference, "k1", "loss").abs().max() < 1e-15
    near = distributions(0.01)
    wrong, right = (expected_gradient(*near, kind, "reward") for kind in ("k3", "k1"))  # pyright: ignore[reportArgumentType]
    assert wrong.norm() < 0.02 * right.norm()


def test_both_estimate_the_divergence() -> None:
    logits, reference = distributions(0.8)
    logprobs = logits.detach().log_softmax(0)
    divergence = (logprobs.exp() * (logprobs - reference)).sum()
    for estimator in ("k1", "k3"):
        found = (logprobs.exp() * reference_kl(logprobs, reference, estimator)).sum()
        torch.testing.assert_close(found, divergence)
    assert (reference_kl(logprobs, reference, "k3") >= 0).all()
