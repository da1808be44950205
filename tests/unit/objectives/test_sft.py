"""The supervised loss: its three normalisations against loops, autograd, and torch's cross-entropy."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from posttrain.objectives.sft import Normalization, sft_loss, sft_normalizer

LENGTHS = torch.tensor([5, 1, 9, 3, 7, 2, 4, 6])
IDS = torch.repeat_interleave(torch.arange(len(LENGTHS)), LENGTHS)
NORMALIZATIONS: tuple[Normalization, ...] = ("sqrt", "token", "sample")


def random_logprobs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (-torch.randn(len(IDS), generator=generator, dtype=torch.float64).abs()).requires_grad_()


def whole(logprobs: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    return sft_loss(logprobs, IDS, sft_normalizer(LENGTHS, normalization), normalization)


def formula(losses: list[float], normalization: Normalization) -> float:
    numerator = denominator = 0.0
    for sample, size in enumerate(LENGTHS.tolist()):
        weight = {"token": 1.0, "sqrt": 1 / math.sqrt(size), "sample": 1 / size}[normalization]
        numerator += sum(weight * losses[t] for t in range(len(IDS)) if IDS[t] == sample)
        denominator += {"token": size, "sqrt": math.sqrt(size), "sample": 1}[normalization]
    return numerator / denominator


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_equals_its_formula(normalization: Normalization) -> None:
    logprobs = random_logprobs()
    expected = formula((-logprobs).tolist(), normalization)
    assert whole(logprobs, normalization).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradient_equals_finite_differences(normalization: Normalization) -> None:
    assert torch.autograd.gradcheck(lambda x: whole(x, normalization), random_logprobs())


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_pieces_and_order_change_nothing(normalization: Normalization) -> None:
    logprobs = random_logprobs()
    whole(logprobs, normalization).backward()
    expected, logprobs.grad = logprobs.grad, None
    pieces = [torch.tensor([6, 0]), torch.tensor([3]), torch.tensor([5, 1, 7]), torch.tensor([2, 4])]
    normalizer = sum(sft_normalizer(LENGTHS[samples], normalization) for samples in pieces)
    for samples in pieces:
        rows = torch.cat([(sample == IDS).nonzero()[:, 0] for sample in samples])
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
        sft_loss(logprobs[rows], IDS[rows], normalizer, normalization).backward()
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-12, atol=1e-15)


def test_token_normalisation_is_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(IDS), 11, generator=generator, dtype=torch.float64)
    targets = torch.randint(11, (len(IDS),), generator=generator)
    logprobs = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    assert whole(logprobs, "token").item() == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-12)


def test_equal_lengths_make_the_three_the_same() -> None:
    ids = torch.arange(6).repeat_interleave(4)
    lengths = torch.full((6,), 4)
    logprobs = random_logprobs()[:24]
    losses = [sft_loss(logprobs, ids, sft_normalizer(lengths, n), n).item() for n in NORMALIZATIONS]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)


def test_a_sample_without_supervised_tokens_does_not_count() -> None:
    for normalization in NORMALIZATIONS:
        with_empty = sft_normalizer(torch.tensor([4, 0, 9]), normalization)
        assert with_empty == sft_normalizer(torch.tensor([4, 9]), normalization)
