"""Log-probs in chunks: against float64 log_softmax, finite differences, and in memory."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from posttrain.models.logprobs import candidate_logprobs, token_logprobs, watched_logprobs


def inputs(n: int, width: int, vocabulary: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n + width + vocabulary)
    hidden = scale * torch.randn(n, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def direct(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the same from all logits at once, in float64."""
    logs = (hidden.double() @ weight.double().T).log_softmax(1)
    return logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(1)


@pytest.mark.parametrize("chunk_size", [1, 4, 13, 64])
def test_equals_log_softmax_and_its_gradients(chunk_size: int) -> None:
    hidden, weight, targets = inputs(13, 8, 31, torch.float64)
    found = token_logprobs(hidden, weight, targets, chunk_size)
    expected = direct(hidden, weight, targets)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    mixed = [(a * torch.arange(13)).sum() + (b * b).sum() for a, b in (found, expected)]
    ours, theirs = (torch.autograd.grad(value, (hidden, weight)) for value in mixed)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradients_equal_finite_differences() -> None:
    hidden, weight, targets = inputs(5, 3, 7, torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, targets, 2), (hidden, weight))


def test_float32_is_exact_to_float32_even_for_large_logits() -> None:
    hidden, weight, targets = inputs(64, 32, 500, torch.float32, scale=10.0)
    found = token_logprobs(hidden, weight, targets, chunk_size=16)
    expected = direct(hidden, weight, targets)
    assert found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close([x.double() for x in found], list(expected), rtol=1e-5, atol=2e-4)
    assert (found[0] <= 1e-6).all()


def test_bfloat16_rounds_the_logits_and_nothing_else() -> None:
    hidden, weight, targets = inputs(33, 16, 100, torch.bfloat16)
    logprobs, _ = token_logprobs(hidden, weight, targets, chunk_size=8)
    assert logprobs.dtype == torch.float32
    # What an engine does: bfloat16 logits, softmax in float32.
    expected = (hidden @ weight.T).float().log_softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=2e-6)
    ours = torch.autograd.grad(logprobs.sum(), (hidden, weight))
    exact = torch.autograd.grad(direct(hidden, weight, targets)[0].sum(), (hidden, weight))
    assert [x.dtype for x in ours] == [torch.bfloat16] * 2
    torch.testing.assert_close(ours, exact, rtol=0.05, atol=0.1)


def test_autocast_changes_nothing() -> None:
    hidden, weight, targets = inputs(9, 8, 20, torch.float32)
    expected = token_logprobs(hidden, weight, targets)
    expected_gradient = torch.autograd.grad(expected[0].sum(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logprobs(hidden, weight, targets)
        found_gradient = torch.autograd.grad(found[0].sum(), weight)
    torch.testing.assert_close((found, found_gradient), (expected, expected_gradient), rtol=0, atol=0)


def test_a_float32_head_serves_bfloat16_states() -> None:
    hidden, weight, targets = inputs(9, 8, 20, torch.bfloat16)
    master = weight.detach().float().requires_grad_()
    found = token_logprobs(hidden, master, targets)[0]
    torch.testing.assert_close(found, token_logprobs(hidden, weight, targets)[0], rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(found.sum(), master)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize(("train_hidden", "train_weight"), itertools.product([True, False], repeat=2))
def test_frozen_inputs_get_no_gradient(train_hidden: bool, train_weight: bool) -> None:
    hidden, weight, targets = inputs(6, 4, 9, torch.float32)
    hidden.requires_grad_(train_hidden)
    weight.requires_grad_(train_weight)
    logprobs, entropy = token_logprobs(hidden, weight, targets, chunk_size=4)
    assert logprobs.requires_grad == entropy.requires_grad == (train_hidden or train_weight)
    if logprobs.requires_grad:
        logprobs.sum().backward()
    assert (hidden.grad is not None) == train_hidden
    assert (weight.grad is not None) == train_weight


def test_no_positions() -> None:
    hidden, weight, targets = inputs(0, 4, 9, torch.float32)
    logprobs, entropy = token_logprobs(hidden, weight, targets)
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert weight.grad is not None
    assert not weight.grad.any()


def test_shapes_that_do_not_fit_are_refused() -> None:
    hidden, weight, targets = inputs(6, 4, 9, torch.float32)
    with pytest.raises(ValueError, match=r"\[N, D\] and \[V, D\]"):
        token_logprobs(hidden, weight.T, targets)
    with pytest.raises(ValueError, match="do not match"):
        token_logprobs(hidden, weight, targets[:-1])
    with pytest.raises(ValueError, match=r"candidates \(6,\) do not match"):
        candidate_logprobs(hidden, weight, targets, targets)


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_candidates_and_the_rest_equal_log_softmax_and_its_gradients(chunk_size: int) -> None:
    hidden, weight, targets = inputs(13, 8, 31, torch.float64)
    candidates = torch.stack(
        [torch.randperm(31, generator=torch.Generator().manual_seed(i))[:5] for i in range(13)]
    )
    found = candidate_logprobs(hidden, weight, targets, candidates, chunk_size)
    logs = (hidden @ weight.T).log_softmax(1)
    rest = logs.scatter(1, candidates, -torch.inf).logsumexp(1)
    expected = (logs.gather(1, targets[:, None])[:, 0], logs.gather(1, candidates), rest)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    mixed = [(a * torch.arange(13)).sum() + (b * b).sum() + (c**3).sum() for a, b, c in (found, expected)]
    ours, theirs = (torch.autograd.grad(value, (hidden, weight)) for value in mixed)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_rest_keeps_its_digits_where_candidates_have_nearly_all() -> None:
    hidden, weight, targets = inputs(8, 16, 50, torch.float32, scale=8.0)
    candidates = (hidden @ weight.T).topk(20).indices
    _, _, rest = candidate_logprobs(hidden, weight, targets, candidates)
    logs = (hidden.double() @ weight.double().T).log_softmax(1)
    expected = logs.scatter(1, candidates, -torch.inf).logsumexp(1)
    assert expected.min() < -20  # one minus the candidates' probabilities is nothing in float32
    torch.testing.assert_close(rest.double(), expected, rtol=1e-4, atol=1e-4)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest result of any operation."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_never_holds_the_logits_of_all_positions() -> None:
    n, width, vocabulary, chunk_size = 256, 8, 1000, 16
    hidden, weight, targets = inputs(n, width, vocabulary, torch.float32)
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs, entropy = token_logprobs(hidden, weight, targets, chunk_size=chunk_size)
        (logprobs.sum() + entropy.sum()).backward()
    assert largest.elements == chunk_size * vocabulary
    assert sum(saved) <= n * width + vocabulary * width + 3 * n
    candidates = torch.arange(5).expand(n, 5)
    with LargestTensor() as largest:
        sum(
            each.sum() for each in candidate_logprobs(hidden, weight, targets, candidates, chunk_size)
        ).backward()  # pyright: ignore
    assert largest.elements == chunk_size * vocabulary
    with LargestTensor() as naive:
        direct(hidden, weight, targets)
    assert naive.elements == n * vocabulary  # so the measurement works


def test_watched_tokens_have_the_probability_of_the_softmax() -> None:
    hidden, weight, targets = inputs(13, 8, 31, torch.float64)
    watched = torch.tensor([3, 30, 7])
    logprobs, entropy, mass = watched_logprobs(hidden, weight, targets, watched, chunk_size=4)
    torch.testing.assert_close((logprobs, entropy), token_logprobs(hidden, weight, targets))
    expected = (hidden @ weight.T).softmax(1)[:, watched].sum(1)
    torch.testing.assert_close(mass, expected.detach(), rtol=1e-12, atol=0)
    assert not mass.requires_grad
    nothing = torch.empty(0, dtype=torch.long)
    assert not watched_logprobs(hidden, weight, targets, nothing)[2].any()


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_a_temperature_divides_the_logits(temperature: float) -> None:
    hidden, weight, targets = inputs(13, 8, 31, torch.float64)
    found = watched_logprobs(hidden, weight, targets, torch.tensor([3, 7]), 4, temperature)
    expected = direct(hidden / temperature, weight, targets)
    torch.testing.assert_close(found[:2], expected, rtol=1e-12, atol=1e-12)
    shares = (hidden @ weight.T / temperature).softmax(1)
    torch.testing.assert_close(found[2], shares[:, [3, 7]].sum(1).detach(), rtol=1e-12, atol=1e-12)
    mixed = [(a * torch.arange(13)).sum() + (b * b).sum() for a, b in (found[:2], expected)]
    ours, theirs = (torch.autograd.grad(value, (hidden, weight)) for value in mixed)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
