"""Divergences between two models' distributions over the whole vocabulary, without either's logits."""

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Positions at a time. A backward pass holds eight [CHUNK, V] tensors in float32 at the most.
CHUNK = 128


def generalized_jsd(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    beta: float,
    chunk_size: int = CHUNK,
) -> Tensor:
    """Compute a divergence between teacher and student at each place, over the whole vocabulary.

    With p the student, q the teacher and m = (1 − β) p + β q::

        β = 0       KL(q ‖ p) = Σᵥ qᵥ (log qᵥ − log pᵥ)                forward
        β = 1       KL(p ‖ q)                                           reverse
        otherwise   β KL(q ‖ m) + (1 − β) KL(p ‖ m)                     Jensen–Shannon, generalised

    Its gradient with respect to the student's logits is p − q where β = 0, and else
    c · p (a − Σᵥ pᵥ aᵥ) with a = log p − log q and c = 1 where β = 1, a = log p − log m and c = 1 − β
    otherwise. So one pass over chunks of [chunk_size, V] logits gives it, and another, which computes them
    again, its gradient. Logits are computed in the precision of their hidden states, everything after them in
    float32 or better.

    A head may be padded with rows that no token uses. Where one has more of them, these do not count.

    Args:
        hidden: [N, D] the student's last hidden states.
        weight: [V, D] weight of its head.
        teacher_hidden: [N, D'] the teacher's last hidden states, before the same tokens.
        teacher_weight: [V', D'] weight of its head.
        beta: β, between 0 and 1.
        chunk_size: Number of positions at a time.

    Returns:
        [N] divergences in nats, with first gradients with respect to the student's `hidden` and `weight`.

    Raises:
        ValueError: If the shapes do not fit together.

    Source:
        Agarwal et al., "On-Policy Distillation of Language Models" (arXiv 2306.13649); TRL's GKD.
    """
    for states, head in ((hidden, weight), (teacher_hidden, teacher_weight)):
        if states.ndim != 2 or head.ndim != 2 or states.shape[1] != head.shape[1]:
            raise ValueError(
                f"hidden {tuple(states.shape)} and weight {tuple(head.shape)} are not [N, D] and [V, D]"
            )
    if len(hidden) != len(teacher_hidden):
        raise ValueError(f"the student has {len(hidden)} places, and the teacher {len(teacher_hidden)}")
    teacher = teacher_hidden.detach(), teacher_weight.detach()
    return _GeneralizedJsd.apply(hidden, weight, *teacher, float(beta), chunk_size)  # type: ignore[misc]


class _Context(Protocol):
    """What autograd carries from a forward pass to its backward pass."""

    beta: float
    chunk_size: int
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _GeneralizedJsd(torch.autograd.Function):
    """The forward and backward pass of `generalized_jsd`; between them it keeps its inputs, and [N] twice."""

    @staticmethod
    def forward(
        ctx: _Context,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        beta: float,
        chunk_size: int,
    ) -> Tensor:
        ctx.beta, ctx.chunk_size = beta, chunk_size
        precision = torch.promote_types(hidden.dtype, torch.float32)
        divergences, means = (hidden.new_empty(len(hidden), dtype=precision) for _ in range(2))
        common = min(len(weight), len(teacher_weight))
        head, teacher_head = _head(weight, hidden, common), _head(teacher_weight, teacher_hidden, common)
        for rows in _chunks(len(hidden), chunk_size):
            student = _log_distribution(hidden[rows], head)
            teacher = _log_distribution(teacher_hidden[rows], teacher_head)
            if beta == 0:
                divergences[rows] = _mean(teacher, teacher - student)
                means[rows] = 0
            elif beta == 1:
                divergences[rows] = means[rows] = _mean(student, student - teacher)
            else:
                mixture = _mixture(student, teacher, beta)
                means[rows] = _mean(student, student - mixture)
                to_teacher = _mean(teacher, teacher - mixture)
                divergences[rows] = beta * to_teacher + (1 - beta) * means[rows]
        ctx.save_for_backward(hidden, weight, teacher_hidden, teacher_weight, means)
        return divergences

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return _gradients(ctx, *gradients)


@once_differentiable
def _gradients(ctx: _Context, of_divergences: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of the student's hidden states and head."""
    hidden, weight, teacher_hidden, teacher_weight, means = ctx.saved_tensors
    beta = ctx.beta
    common = min(len(weight), len(teacher_weight))
    head, teacher_head = _head(weight, hidden, common), _head(teacher_weight, teacher_hidden, common)
    of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
    of_weight = torch.zeros_like(weight, dtype=means.dtype) if ctx.needs_input_grad[1] else None
    for rows in _chunks(len(hidden), ctx.chunk_size):
        student = _log_distribution(hidden[rows], head)
        teacher = _log_distribution(teacher_hidden[rows], teacher_head)
        if beta == 0:
            of_logits = student.exp_().sub_(teacher.exp_())
        else:
            against = teacher if beta == 1 else _mixture(student, teacher, beta)
            scale = 1.0 if beta == 1 else 1 - beta
            excess = (student - against).sub_(means[rows, None])
            of_logits = student.exp_().mul_(excess).mul_(scale)
        of_logits = of_logits.mul_(of_divergences[rows, None]).to(hidden.dtype)
        if of_hidden is not None:
            of_hidden[rows] = of_logits @ head
        if of_weight is not None and of_weight.dtype == hidden.dtype:
            of_weight[:common].addmm_(of_logits.T, hidden[rows])
        elif of_weight is not None:
            of_weight[:common] += of_logits.T @ hidden[rows]
    return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None, None, None


def _mean(of: Tensor, values: Tensor) -> Tensor:
    """Compute the mean of [n, V] values under [n, V] log-probs."""
    return (of.exp() * values).sum(1)


def _mixture(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Compute log((1 − β) p + β q) of two log-distributions."""
    share = torch.tensor(beta, dtype=student.dtype, device=student.device)
    return torch.logaddexp(student + (1 - share).log(), teacher + share.log())


def _head(weight: Tensor, hidden: Tensor, rows: int) -> Tensor:
    """Return the first rows of a head in the precision of the hidden states."""
    return weight[:rows].to(hidden.dtype)


def _log_distribution(hidden: Tensor, head: Tensor) -> Tensor:
    """Compute [n, V] log-probs, in float32 or better."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden @ head.T
    return logits.to(torch.promote_types(hidden.dtype, torch.float32)).log_softmax(1)


def _chunks(length: int, size: int) -> list[slice]:
    """Cut range(length) into slices of `size`."""
    return [slice(start, start + size) for start in range(0, length, size)]
