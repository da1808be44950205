"""Divergences between distributions, against float64, finite differences, TRL, and a bound on memory."""

import pytest
import torch
from torch import Tensor
from trl.experimental.gkd import GKDTrainer

from posttrain.models.divergences import generalized_jsd

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
PLACES, WIDTH, TEACHER_WIDTH, VOCABULARY = 7, 5, 8, 11


def inputs(seed: int = 0, scale: float = 1.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    shapes = ((PLACES, WIDTH), (VOCABULARY, WIDTH), (PLACES, TEACHER_WIDTH), (VOCABULARY, TEACHER_WIDTH))
    hidden, head, teacher, teacher_head = (
        torch.randn(shape, generator=made, dtype=torch.float64) * scale for shape in shapes
    )
    return hidden, head, teacher, teacher_head


def by_definition(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """The divergence of [V] probabilities, token by token."""

    def kl(of: Tensor, to: Tensor) -> Tensor:
        return sum(
            (a * (a.log() - b.log()) for a, b in zip(of, to, strict=True)), torch.zeros((), dtype=of.dtype)
        )

    if beta in (0.0, 1.0):
        return kl(student, teacher) if beta else kl(teacher, student)
    mixture = (1 - beta) * student + beta * teacher
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


@pytest.mark.parametrize("beta", BETAS)
def test_it_is_the_definition_and_what_trl_computes(beta: float) -> None:
    hidden, head, teacher, teacher_head = inputs()
    found = generalized_jsd(hidden, head, teacher, teacher_head, beta, chunk_size=3)
    student_logits, teacher_logits = hidden @ head.T, teacher @ teacher_head.T
    rows = zip(student_logits.softmax(1), teacher_logits.softmax(1), strict=True)
    expected = torch.stack([by_definition(p, q, beta) for p, q in rows])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    of_trl = GKDTrainer.generalized_jsd_loss(student_logits[None], teacher_logits[None], beta=beta)
    assert found.sum().item() == pytest.approx(float(of_trl), rel=1e-10)  # its batch has one row


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_agree_with_finite_differences(beta: float) -> None:
    hidden, head, teacher, teacher_head = inputs(1)
    hidden.requires_grad_()
    head.requires_grad_()

    def divergence(hidden: Tensor, head: Tensor) -> Tensor:
        return generalized_jsd(hidden, head, teacher, teacher_head, beta, chunk_size=3)

    assert torch.autograd.gradcheck(divergence, (hidden, head), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_a_student_that_is_its_teacher_learns_nothing(beta: float) -> None:
    hidden, head, _, _ = inputs(2, scale=6.0)
    student = hidden.float().requires_grad_()
    found = generalized_jsd(student, head.float(), student, head.float(), beta)
    found.sum().backward()
    assert student.grad is not None
    assert found.abs().max() < 1e-5
    assert student.grad.abs().max() < 1e-4


@pytest.mark.parametrize("student_has_more", [True, False])
def test_rows_that_pad_a_head_do_not_count(student_has_more: bool) -> None:
    hidden, head, teacher, teacher_head = inputs(3)
    padding = torch.randn(4, WIDTH if student_has_more else TEACHER_WIDTH, dtype=torch.float64)
    hidden.requires_grad_()
    expected = generalized_jsd(hidden, head, teacher, teacher_head, 0.5)
    if student_has_more:
        head = torch.cat([head, padding]).requires_grad_()
    else:
        teacher_head = torch.cat([teacher_head, padding])
    found = generalized_jsd(hidden, head, teacher, teacher_head, 0.5)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    if student_has_more:
        assert head.grad is not None
        assert head.grad[:VOCABULARY].abs().min() > 0
        assert head.grad[VOCABULARY:].abs().max() == 0


def test_bfloat16_states_give_finite_results_where_a_token_is_all_but_impossible() -> None:
    hidden, head, teacher, teacher_head = (each.bfloat16() for each in inputs(4, scale=12.0))
    hidden.requires_grad_()
    for beta in BETAS:
        found = generalized_jsd(hidden, head, teacher, teacher_head, beta)
        found.sum().backward()
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        assert hidden.grad is not None
        assert hidden.grad.isfinite().all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    hidden, head, teacher, teacher_head = inputs()
    with pytest.raises(ValueError, match="7 places, and the teacher 6"):
        generalized_jsd(hidden, head, teacher[1:], teacher_head, 0.5)
    with pytest.raises(ValueError, match="are not"):
        generalized_jsd(hidden, teacher_head, teacher, teacher_head, 0.5)
