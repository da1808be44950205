"""The distillation loss: against loops in float64, finite differences and the whole vocabulary."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from posttrain.models.divergences import generalized_jsd
from posttrain.models.logprobs import candidate_logprobs
from posttrain.objectives.distill import TopLogprobs, distillation_loss, top_k_jsd, top_k_kl
from posttrain.objectives.sft import sft_loss, sft_normalizer

TOKENS, WIDTH, VOCABULARY = 12, 5, 17
LENGTHS = torch.tensor([5, 1, 4, 2])
IDS = torch.arange(4).repeat_interleave(LENGTHS)


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


HIDDEN, WEIGHT = draw(TOKENS, WIDTH, seed=0), draw(VOCABULARY, WIDTH, seed=1)
TARGETS = torch.arange(TOKENS) % VOCABULARY
#: The teacher's whole distribution, sharp enough that little is left beyond a few tokens.
TEACHER = (2 * draw(TOKENS, VOCABULARY, seed=2)).log_softmax(1)


def divergences(k: int, hidden: Tensor = HIDDEN, weight: Tensor = WEIGHT) -> tuple[Tensor, Tensor]:
    """Return [T] log-probs of the targets and [T] divergences, computed from hidden states."""
    teacher, ids = TEACHER.topk(k)
    logprobs, candidates, rest = candidate_logprobs(hidden, weight, TARGETS, ids, chunk_size=5)
    return logprobs, top_k_kl(TopLogprobs(teacher, candidates, rest))


def by_definition(k: int, beta: float = 0.0) -> list[float]:
    """Compute the divergences over k tokens and all others as one, number by number."""
    student = (HIDDEN @ WEIGHT.T).log_softmax(1)
    found = []
    for q, p in zip(TEACHER.exp().tolist(), student.exp().tolist(), strict=True):
        best = sorted(range(VOCABULARY), key=lambda token: -q[token])[:k]
        pairs = [(q[token], p[token]) for token in best]
        others = [token for token in range(VOCABULARY) if token not in best]
        if others:
            pairs.append((math.fsum(q[token] for token in others), math.fsum(p[token] for token in others)))
        if beta in (0, 1):
            pairs = [(a, b) if beta == 0 else (b, a) for a, b in pairs]
            found.append(math.fsum(a * math.log(a / b) for a, b in pairs))
        else:
            mixed = [(a, b, (1 - beta) * b + beta * a) for a, b in pairs]
            terms = [beta * a * math.log(a / m) + (1 - beta) * b * math.log(b / m) for a, b, m in mixed]
            found.append(math.fsum(terms))
    return found


@pytest.mark.parametrize("k", [1, 4, VOCABULARY - 1, VOCABULARY])
def test_equals_its_definition(k: int) -> None:
    assert divergences(k)[1].tolist() == pytest.approx(by_definition(k), rel=1e-9)


def test_all_tokens_give_the_full_divergence_and_fewer_never_more() -> None:
    student = (HIDDEN @ WEIGHT.T).log_softmax(1)
    full = (TEACHER.exp() * (TEACHER - student)).sum(1)
    found = [divergences(k)[1] for k in (1, 3, 9, VOCABULARY)]
    torch.testing.assert_close(found[-1], full, rtol=1e-12, atol=1e-14)
    for fewer, more in itertools.pairwise(found):
        assert (fewer <= more + 1e-12).all()
    assert (found[0] >= 0).all()
    assert (found[0] < full - 1e-3).any()


@pytest.mark.parametrize("k", [3, VOCABULARY])
def test_gradients_equal_finite_differences(k: int) -> None:
    inputs = (HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda h, w: torch.stack(divergences(k, h, w)), inputs)


def test_the_teachers_own_distribution_costs_nothing() -> None:
    teacher = TEACHER.topk(4).values
    rest = (1 - teacher.exp().sum(1)).log()
    student = teacher.clone().requires_grad_()
    loss = top_k_kl(TopLogprobs(teacher, student, rest))
    assert loss.abs().max() < 1e-14


def test_tokens_that_the_student_has_not_are_among_the_rest() -> None:
    """A token that the student lacks has log-prob −inf, and another candidate is named twice."""
    teacher, ids = TEACHER.topk(4)
    unknown = torch.tensor([False, False, True, False]).expand_as(ids)
    teacher, ids = teacher.masked_fill(unknown, -math.inf), torch.where(unknown, ids[:, :1], ids)
    hidden = HIDDEN.clone().requires_grad_()
    _, candidates, rest = candidate_logprobs(hidden, WEIGHT, TARGETS, ids)
    found = top_k_kl(TopLogprobs(teacher, candidates, rest))
    kept = ids[:, [0, 1, 3]]
    _, fewer, others = candidate_logprobs(HIDDEN, WEIGHT, TARGETS, kept)
    torch.testing.assert_close(found, top_k_kl(TopLogprobs(teacher[:, [0, 1, 3]], fewer, others)))
    found.sum().backward()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_a_confident_teacher_in_float32_is_no_trouble() -> None:
    """The teacher's probabilities add up to 1, or by rounding to more; the student leaves next to nothing."""
    hidden = (30 * HIDDEN).float().requires_grad_()
    teacher, ids = (60 * TEACHER).log_softmax(1).float().topk(4)
    _, candidates, rest = candidate_logprobs(hidden, WEIGHT.float(), TARGETS, ids)
    found = top_k_kl(TopLogprobs(teacher + 1e-7, candidates, rest))
    found.sum().backward()
    assert hidden.grad is not None
    assert torch.isfinite(found).all()
    assert torch.isfinite(hidden.grad).all()
    assert (found > -1e-5).all()


@pytest.mark.parametrize("normalization", ["sqrt", "token", "sample"])
def test_the_mix_weighs_tokens_as_the_supervised_loss_does(normalization: str) -> None:
    logprobs, kl = divergences(4)
    settings = (sft_normalizer(LENGTHS, normalization), normalization)  # pyright: ignore[reportArgumentType]
    found = distillation_loss(logprobs, kl, IDS, *settings, 0.3)  # pyright: ignore[reportArgumentType]
    parts = [sft_loss(values, IDS, *settings) for values in (logprobs, -kl)]  # pyright: ignore
    assert found.item() == pytest.approx(0.7 * parts[0].item() + 0.3 * parts[1].item(), rel=1e-12)
    pieces = [torch.tensor([2, 0]), torch.tensor([3, 1])]
    rows = [torch.cat([(sample == IDS).nonzero()[:, 0] for sample in samples]) for samples in pieces]
    total = sum(distillation_loss(logprobs[r], kl[r], IDS[r], *settings, 0.3).item() for r in rows)  # pyright: ignore
    assert total == pytest.approx(found.item(), rel=1e-12)


def kinds(beta: float, k: int, hidden: Tensor = HIDDEN, weight: Tensor = WEIGHT) -> Tensor:
    teacher, ids = TEACHER.topk(k)
    _, candidates, rest = candidate_logprobs(hidden, weight, TARGETS, ids, chunk_size=5)
    return top_k_jsd(TopLogprobs(teacher, candidates, rest), beta)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_every_kind_equals_its_definition_and_the_whole_vocabularys(beta: float) -> None:
    for k in (1, 4, VOCABULARY):
        assert kinds(beta, k).tolist() == pytest.approx(by_definition(k, beta), rel=1e-9)
    teacher_head = torch.eye(VOCABULARY, dtype=torch.float64)
    full = generalized_jsd(HIDDEN, WEIGHT, TEACHER, teacher_head, beta)
    torch.testing.assert_close(kinds(beta, VOCABULARY), full, rtol=1e-9, atol=1e-12)
    assert (kinds(beta, 4) <= full + 1e-12).all()
    inputs = (HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda h, w: kinds(beta, 3, h, w), inputs)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_token_without_the_teachers_word_does_not_count_and_a_sure_teacher_is_finite(beta: float) -> None:
    teacher, ids = TEACHER.topk(3)
    again = torch.cat([ids, ids[:, :1]], 1)
    _, candidates, rest = candidate_logprobs(HIDDEN, WEIGHT, TARGETS, again)
    repeated = torch.cat([teacher, torch.full((TOKENS, 1), -torch.inf)], 1)
    torch.testing.assert_close(top_k_jsd(TopLogprobs(repeated, candidates, rest), beta), kinds(beta, 3))
    sure = torch.tensor([[0.0], [1e-7]])  # rounding may carry the log-prob of one token above 0
    student = torch.tensor([[-1e-9], [-3.0]], requires_grad=True)
    tail = torch.tensor([-20.0, -0.05], requires_grad=True)
    found = top_k_jsd(TopLogprobs(sure, student, tail), beta)
    found.sum().backward()
    assert student.grad is not None
    assert tail.grad is not None
    assert all(each.isfinite().all() for each in (found, student.grad, tail.grad))
    assert found[0].abs() < 1e-5 < found[1]
