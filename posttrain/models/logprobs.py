"""Log-probs of given tokens, computed without ever holding the logits of all positions."""

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int = 512
) -> tuple[Tensor, Tensor]:
    """Compute the log-prob of each target token, and the entropy of each next-token distribution.

    With z = hidden · weightᵀ::

        log p = z − logsumexp(z)    logprob = log p[target]    entropy = −Σᵥ pᵥ log pᵥ

    Only [chunk_size, V] logits exist at a time, also in the backward pass, which computes them again. All
    [N, V] logits of 65,536 tokens of Qwen3-VL's vocabulary would be 40 GB in float32.

    Logits are computed in the precision of `hidden`, as engines do, so that learner and engine agree;
    everything after them in float32 or better. Autocast has no effect here.

    Args:
        hidden: [N, D] last hidden states of the positions *before* the targets.
        weight: [V, D] weight of the language model's head, which has no bias in the Qwen families.
        targets: [N] token ids.
        chunk_size: Number of positions at a time.

    Returns:
        (logprobs [N], entropy [N]), in float32, or float64 if `hidden` is. Both have first gradients with
        respect to `hidden` and `weight`.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    logprobs, entropy, _ = watched_logprobs(hidden, weight, targets, targets[:0], chunk_size)
    return logprobs, entropy


def watched_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    watched: Tensor,
    chunk_size: int = 512,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what `token_logprobs` does, and the probability of some tokens at every place.

    At another temperature all are those of the distribution of z / temperature, as engines sample from it.

    Args:
        hidden: [N, D] last hidden states of the positions *before* the targets.
        weight: [V, D] weight of the language model's head.
        targets: [N] token ids.
        watched: [K] token ids.
        chunk_size: Number of positions at a time.
        temperature: What logits are divided by, in float32.

    Returns:
        (logprobs [N], entropy [N], probability of all watched tokens together [N], without gradient).

    Raises:
        ValueError: If the shapes do not fit together.
    """
    nothing = targets.new_empty(len(targets), 0)
    others = (nothing, watched)
    logprobs, entropy, _, _, mass = _apply(hidden, weight, targets, others, chunk_size, temperature)
    return logprobs, entropy, mass


def candidate_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, candidates: Tensor, chunk_size: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the log-probs of each target token, of K candidates at its place, and of all other tokens.

    Memory and precision are those of `token_logprobs`. The log-prob of all other tokens together is computed
    from their logits: one minus the candidates' probabilities would be a mere rounding error if these are
    close to 1.

    Args:
        hidden: [N, D] last hidden states of the positions *before* the targets.
        weight: [V, D] weight of the language model's head.
        targets: [N] token ids.
        candidates: [N, K] token ids; a token that is named twice counts once.
        chunk_size: Number of positions at a time.

    Returns:
        The log-probs of the targets [N], of the candidates [N, K], and of all other tokens together [N] (−inf
        if there are none), all with gradients.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    logprobs, _, of_candidates, rest, _ = _apply(
        hidden, weight, targets, (candidates, targets[:0]), chunk_size
    )
    return logprobs, of_candidates, rest


def _apply(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    others: tuple[Tensor, Tensor],
    chunk_size: int,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Check the shapes, and run `_TokenLogprobs`; the others are its candidates and what it watches."""
    candidates, watched = others
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} are not [N, D] and [V, D]"
        )
    for name, ids in (("targets", targets), ("candidates", candidates)):
        if len(ids) != len(hidden) or ids.ndim != (1 if name == "targets" else 2):
            raise ValueError(f"{name} {tuple(ids.shape)} do not match hidden {tuple(hidden.shape)}")
    how = (chunk_size, temperature)
    return _TokenLogprobs.apply(hidden, weight, targets, candidates, watched, how)  # type: ignore[misc]


class _Context(Protocol):
    """What autograd carries from a forward pass to its backward pass."""

    chunk_size: int
    temperature: float
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _TokenLogprobs(torch.autograd.Function):
    """The forward and backward pass of `token_logprobs` and `candidate_logprobs`.

    For the backward pass it keeps its inputs, and [N] each of logsumexp, entropy and log-prob of the rest.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        candidates: Tensor,
        watched: Tensor,
        how: tuple[int, float],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # most losses use no gradient of the entropy
        ctx.chunk_size, ctx.temperature = how
        precision = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy, normalizers, mass = (
            hidden.new_empty(len(hidden), dtype=precision) for _ in range(4)
        )
        rest = hidden.new_empty(len(hidden) if candidates.shape[1] else 0, dtype=precision)
        of_candidates = hidden.new_empty(candidates.shape, dtype=precision)
        head = weight.to(hidden.dtype)
        for rows in _chunks(len(hidden), ctx.chunk_size):
            logits = _logits(hidden[rows], head, ctx.temperature)
            largest = logits.amax(1)
            below = logits.sub_(largest[:, None])  # z − max z, never above 0
            shares = below.exp()
            total = shares.sum(1)
            normalizers[rows] = largest + total.log()
            logprobs[rows] = below.gather(1, targets[rows, None]).squeeze(1) - total.log()
            of_candidates[rows] = below.gather(1, candidates[rows]) - total.log()[:, None]
            mass[rows] = shares[:, watched].sum(1) / total
            # H = log Σ exp(below) − Σ p · below: neither is below 0, so nothing is lost as they are added.
            entropy[rows] = total.log() - shares.mul_(below).sum(1) / total
            if candidates.shape[1]:
                rest[rows] = below.scatter_(1, candidates[rows], -torch.inf).logsumexp(1) - total.log()
        ctx.save_for_backward(hidden, weight, targets, candidates, normalizers, entropy, rest)
        ctx.mark_non_differentiable(mass)
        return logprobs, entropy, of_candidates, rest, mass

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return _gradients(ctx, *gradients)


@once_differentiable
def _gradients(
    ctx: _Context,
    of_logprobs: Tensor | None,
    of_entropy: Tensor | None,
    of_candidates: Tensor | None,
    of_rest: Tensor | None,
    _of_mass: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of every argument of `_TokenLogprobs.forward` from those of its results."""
    hidden, weight, targets, candidates, normalizers, entropy, rest = ctx.saved_tensors
    head = weight.to(hidden.dtype)
    of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
    of_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if ctx.needs_input_grad[1] else None
    for rows in _chunks(len(hidden), ctx.chunk_size):
        logs = _logits(hidden[rows], head, ctx.temperature).sub_(normalizers[rows, None])
        given = _given(targets[rows], of_logprobs, candidates[rows], of_candidates, rows)
        # ∂ log p[token]/∂z = onehot − p
        shares = sum((gradient.sum(1, keepdim=True) for _, gradient in given), normalizers.new_zeros(1, 1))
        others = torch.zeros_like(logs) if of_entropy is not None or of_rest is not None else None
        if others is not None and of_entropy is not None:  # ∂H/∂z = −p (log p + H)
            others -= logs.exp() * (logs + entropy[rows, None]) * of_entropy[rows, None]
        if others is not None and of_rest is not None:  # ∂ log p[rest]/∂z = p/p[rest] over the rest, − p
            of_shares = (logs - rest[rows, None]).exp_().scatter_(1, candidates[rows], 0)
            others += (of_shares - logs.exp()) * of_rest[rows, None]
        of_logits = logs.exp_().mul_(-shares)  # in place: few of these fit
        if others is not None:
            of_logits += others
        for ids, gradient in given:
            of_logits.scatter_add_(1, ids, gradient)
        if ctx.temperature != 1:
            of_logits /= ctx.temperature
        of_logits = of_logits.to(hidden.dtype)
        if of_hidden is not None:
            of_hidden[rows] = of_logits @ head
        if of_weight is not None and of_weight.dtype == hidden.dtype:
            of_weight.addmm_(of_logits.T, hidden[rows])  # without a copy of the head's size
        elif of_weight is not None:
            of_weight += of_logits.T @ hidden[rows]
    return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None, None, None


def _given(
    targets: Tensor, of_logprobs: Tensor | None, candidates: Tensor, of_candidates: Tensor | None, rows: slice
) -> list[tuple[Tensor, Tensor]]:
    """Pair token ids [n, k] of some rows with the gradients of their log-probs, as far as there are any."""
    pairs = ((targets[:, None], of_logprobs), (candidates, of_candidates))
    return [(ids, gradient[rows].reshape(ids.shape)) for ids, gradient in pairs if gradient is not None]


def _chunks(length: int, size: int) -> list[slice]:
    """Cut range(length) into slices of `size`."""
    return [slice(start, start + size) for start in range(0, length, size)]


def _logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """Compute [n, V] logits in the precision of `hidden`, and divide and return them in float32 or better."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden @ head.T
    logits = logits.to(torch.promote_types(hidden.dtype, torch.float32))
    return logits if temperature == 1 else logits.div_(temperature)
