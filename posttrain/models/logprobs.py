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
    nothing = targets.new_empty(len(targets), 0)
    logprobs, entropy, _, _ = _apply(hidden, weight, targets, nothing, temperature, chunk_size)
    return logprobs, entropy


def candidate_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, candidates: Tensor, chunk_size: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of each target token, of other candidates in its place, and of all that are no candidates.

    As `token_logprobs` in everything else. The log-prob of the rest is summed up from its tokens: one minus
    the candidates' probabilities would be nothing but rounding where they have nearly all.

    Args:
        hidden: [N, D].
        weight: [V, D].
        targets: [N] token ids.
        candidates: [N, K] token ids; one that is named twice counts once.
        chunk_size: Positions at a time.

    Returns:
        (log-probs of the targets [N], of the candidates [N, K], of all other tokens together [N]; −inf where
        there are none), with gradients.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    logprobs, _, of_candidates, rest = _apply(hidden, weight, targets, candidates, 1.0, chunk_size)
    return logprobs, of_candidates, rest


def _apply(
    hidden: Tensor, weight: Tensor, targets: Tensor, candidates: Tensor, temperature: float, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} are not [N, D] and [V, D]"
        )
    for name, ids in (("targets", targets), ("candidates", candidates)):
        if len(ids) != len(hidden) or ids.ndim != (1 if name == "targets" else 2):
            raise ValueError(f"{name} {tuple(ids.shape)} do not match hidden {tuple(hidden.shape)}")
    return _TokenLogprobs.apply(hidden, weight, targets, candidates, temperature, chunk_size)  # type: ignore[misc]


class _TokenLogprobs(torch.autograd.Function):
    """See `token_logprobs` and `candidate_logprobs`.

    It keeps its inputs, and logsumexp, entropy and log-prob of the rest, [N] each, for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        candidates: Tensor,
        temperature: float,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # entropy is mostly only looked at
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        precision = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy, normalizers = (hidden.new_empty(len(hidden), dtype=precision) for _ in range(3))
        rest = hidden.new_empty(len(hidden) if candidates.shape[1] else 0, dtype=precision)
        of_candidates = hidden.new_empty(candidates.shape, dtype=precision)
        head = weight.to(hidden.dtype)
        for rows in _chunks(len(hidden), chunk_size):
            logits = _logits(hidden[rows], head, temperature)
            normalizer = logits.logsumexp(1)
            normalizers[rows] = normalizer
            # Not logsumexp − Σ p z, which takes large logits from each other.
            logs = logits.sub_(normalizer[:, None])
            logprobs[rows] = logs.gather(1, targets[rows, None]).squeeze(1)
            of_candidates[rows] = logs.gather(1, candidates[rows])
            entropy[rows] = -(logs.exp() * logs).sum(1)
            if candidates.shape[1]:
                rest[rows] = logs.scatter_(1, candidates[rows], -torch.inf).logsumexp(1)
        ctx.save_for_backward(hidden, weight, targets, candidates, normalizers, entropy, rest)
        return logprobs, entropy, of_candidates, rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return _gradients(ctx, *gradients)


def _gradients(
    ctx: Any,
    of_logprobs: Tensor | None,
    of_entropy: Tensor | None,
    of_candidates: Tensor | None,
    of_rest: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients towards every argument of `_TokenLogprobs.forward`, from those of its results."""
    hidden, weight, targets, candidates, normalizers, entropy, rest = ctx.saved_tensors
    head = weight.to(hidden.dtype)
    of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
    of_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if ctx.needs_input_grad[1] else None
    for rows in _chunks(len(hidden), ctx.chunk_size):
        logs = _logits(hidden[rows], head, ctx.temperature).sub_(normalizers[rows, None])
        of_logits = torch.zeros_like(logs)
        if of_entropy is not None:  # ∂H/∂z = −p (log p + H)
            of_logits -= logs.exp() * (logs + entropy[rows, None]) * of_entropy[rows, None]
        if of_rest is not None:  # ∂ log p[rest]/∂z = p/p[rest] over the rest, − p
            shares = (logs - rest[rows, None]).exp_().scatter_(1, candidates[rows], 0)
            of_logits += (shares - logs.exp()) * of_rest[rows, None]
        probabilities = logs.exp_()
        for ids, gradient in ((targets[rows, None], of_logprobs), (candidates[rows], of_candidates)):
            if gradient is not None:  # ∂ log p[token]/∂z = onehot − p
                given = gradient[rows].reshape(ids.shape)
                of_logits -= probabilities * given.sum(1, keepdim=True)
                of_logits.scatter_add_(1, ids, given)
        of_logits = (of_logits / ctx.temperature).to(hidden.dtype)
        if of_hidden is not None:
            of_hidden[rows] = of_logits @ head
        if of_weight is not None:
            of_weight += of_logits.T @ hidden[rows]
    return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None, None, None


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """[n, V] logits, computed in the precision of `hidden`, returned in float32 at least."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden @ head.T
    return logits.to(torch.promote_types(hidden.dtype, torch.float32)) / temperature
