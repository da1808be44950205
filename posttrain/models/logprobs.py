"""Log-probs of given tokens without ever holding the logits of all positions."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, chunk_size: int = 512
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target token and entropy of each next-token distribution.

    With z = (hidden · weightᵀ) / temperature::

        log p = z − logsumexp(z)    logprob = log p[target]    entropy = −Σᵥ pᵥ log pᵥ

    Only [chunk_size, V] logits exist at a time, in the backward pass too, where they are computed again:
    all [N, V] of them would be 40 GB for 65,536 tokens of Qwen3-VL's vocabulary in float32.

    Logits are computed in the precision of `hidden`, as engines do, so that the two agree; everything
    after them in float32 at least. Autocast changes nothing here.

    Args:
        hidden: [N, D] last hidden states of the positions *before* the targets.
        weight: [V, D] the language model's head (no bias, as in the Qwen family).
        targets: [N] token ids.
        temperature: Of the sampling distribution, above 0.
        chunk_size: Positions at a time.

    Returns:
        (logprobs [N], entropy [N]), float32 (float64 where `hidden` is); both have gradients towards
        `hidden` and `weight`, once.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} are not [N, D] and [V, D]"
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {tuple(targets.shape)} do not match hidden {tuple(hidden.shape)}")
    logprobs, entropy = _TokenLogprobs.apply(hidden, weight, targets, temperature, chunk_size)  # type: ignore[misc]
    return logprobs, entropy


class _TokenLogprobs(torch.autograd.Function):
    """See `token_logprobs`; keeps its inputs, logsumexp and entropy, [N] each, for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # entropy is mostly only looked at
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        precision = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy, normalizers = (hidden.new_empty(len(hidden), dtype=precision) for _ in range(3))
        head = weight.to(hidden.dtype)
        for rows in _chunks(len(hidden), chunk_size):
            logits = _logits(hidden[rows], head, temperature)
            normalizer = logits.logsumexp(1)
            normalizers[rows] = normalizer
            # Not logsumexp − Σ p z, which takes large logits from each other.
            logs = logits.sub_(normalizer[:, None])
            logprobs[rows] = logs.gather(1, targets[rows, None]).squeeze(1)
            entropy[rows] = -(logs.exp() * logs).sum(1)
        ctx.save_for_backward(hidden, weight, targets, normalizers, entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return _gradients(ctx, *gradients)


def _gradients(ctx: Any, of_logprobs: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients towards every argument of `_TokenLogprobs.forward`, from those of its results, [N]."""
    hidden, weight, targets, normalizers, entropy = ctx.saved_tensors
    head = weight.to(hidden.dtype)
    of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
    of_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if ctx.needs_input_grad[1] else None
    for rows in _chunks(len(hidden), ctx.chunk_size):
        logs = _logits(hidden[rows], head, ctx.temperature).sub_(normalizers[rows, None])
        of_logits = torch.zeros_like(logs)
        if of_entropy is not None:  # ∂H/∂z = −p (log p + H)
            of_logits -= logs.exp() * (logs + entropy[rows, None]) * of_entropy[rows, None]
        if of_logprobs is not None:  # ∂ log p[target]/∂z = onehot − p
            of_logits -= logs.exp_() * of_logprobs[rows, None]
            of_logits.scatter_add_(1, targets[rows, None], of_logprobs[rows, None])
        of_logits = (of_logits / ctx.temperature).to(hidden.dtype)
        if of_hidden is not None:
            of_hidden[rows] = of_logits @ head
        if of_weight is not None:
            of_weight += of_logits.T @ hidden[rows]
    return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None, None


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """[n, V] logits, computed in the precision of `hidden`, returned in float32 at least."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden @ head.T
    return logits.to(torch.promote_types(hidden.dtype, torch.float32)) / temperature
