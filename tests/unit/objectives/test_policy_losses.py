"""SAPO, GRPO and GSPO: against their formulas in float64, against TRL, and what must not change them."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from posttrain.objectives.packed import (
    MAX_LOG_RATIO,
    SampledTokens,
    ratio_metrics,
    truncated_importance_weights,
)
from posttrain.objectives.policy_gradient import grpo_loss, gspo_loss
from posttrain.objectives.sapo import gate_quantiles, sapo_loss
from tests.unit.ranks import on_two_ranks

CAP = 1.5
LENGTHS = (5, 1, 9, 3, 7, 2, 4, 6)
LOSSES: dict[str, Callable[..., tuple[Tensor, dict[str, Tensor]]]] = {
    "sapo": partial(sapo_loss, tau_pos=1.0, tau_neg=1.05),
    "sapo-sharp": partial(sapo_loss, tau_pos=3.0, tau_neg=7.0),
    "grpo": partial(grpo_loss, clip_low=0.2, clip_high=0.28),
    "gspo": partial(gspo_loss, clip_low=0.05, clip_high=0.08),
}


@dataclass
class Batch:
    """Packed tokens in float64."""

    logprobs: Tensor
    old_logprobs: Tensor
    engine_logprobs: Tensor
    advantages: Tensor
    sequence_ids: Tensor

    def at(self, rows: Tensor) -> "Batch":
        return Batch(*(value[rows] for value in vars(self).values()))

    def tokens(self, cap: float | None = None) -> SampledTokens:
        weights = None
        if cap is not None:
            weights = truncated_importance_weights(self.old_logprobs, self.engine_logprobs, cap)
        return SampledTokens(
            self.logprobs, self.old_logprobs, self.advantages, self.sequence_ids, len(LENGTHS), weights
        )


def random_batch(seed: int, spread: float = 0.4) -> Batch:
    """Draw a batch with ratios around 1, and with advantages of both signs, one of them zero."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    ids = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    old = -normal(len(ids)).abs() - 0.1
    advantages = normal(len(LENGTHS))
    advantages[1] = 0.0
    return Batch(
        (old + spread * normal(len(ids))).requires_grad_(),
        old,
        old + 0.5 * normal(len(ids)),
        advantages[ids],
        ids,
    )


def run(name: str, batch: Batch, cap: float | None = None) -> Tensor:
    return LOSSES[name](batch.tokens(cap))[0]


def gradient(name: str, batch: Batch, cap: float | None = None) -> Tensor:
    (result,) = torch.autograd.grad(run(name, batch, cap), batch.logprobs)
    return result


def formula(name: str, batch: Batch, cap: float | None) -> float:
    """Compute the papers' formulas literally, by loops over Python floats."""
    total = 0.0
    for sequence in range(len(LENGTHS)):
        tokens = [t for t in range(len(batch.sequence_ids)) if batch.sequence_ids[t] == sequence]
        ratios = [math.exp(batch.logprobs[t].item() - batch.old_logprobs[t].item()) for t in tokens]
        geometric_mean = math.prod(ratios) ** (1 / len(tokens))
        for t, ratio in zip(tokens, ratios, strict=True):
            advantage = batch.advantages[t].item()
            off_policy = math.exp(batch.old_logprobs[t].item() - batch.engine_logprobs[t].item())
            weight = 1.0 if cap is None else min(off_policy, cap)
            if name.startswith("sapo"):
                tau = LOSSES[name].keywords["tau_pos" if advantage > 0 else "tau_neg"]  # type: ignore[attr-defined]
                value = 1 / (1 + math.exp(-tau * (ratio - 1))) * 4 / tau * advantage
            else:
                low, high = LOSSES[name].keywords.values()  # type: ignore[attr-defined]
                r = geometric_mean if name == "gspo" else ratio
                value = min(r * advantage, min(max(r, 1 - low), 1 + high) * advantage)
            total += weight * value / len(tokens)
    return -total / len(LENGTHS)


@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_its_formula(name: str, cap: float | None) -> None:
    for seed in range(3):
        batch = random_batch(seed)
        assert run(name, batch, cap).item() == pytest.approx(formula(name, batch, cap), rel=1e-12)


@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name: str, cap: float | None) -> None:
    batch = random_batch(0)
    assert torch.autograd.gradcheck(
        lambda logprobs: run(name, replace(batch, logprobs=logprobs), cap), batch.logprobs
    )


def trl_loss(name: str, batch: Batch, cap: float | None) -> Tensor:
    """Compute TRL's own loss of the same tokens, padded to a rectangle."""
    sequences, width = len(LENGTHS), max(LENGTHS)
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]

    def padded(values: Tensor) -> Tensor:
        return torch.zeros(sequences, width, dtype=values.dtype).masked_scatter(mask, values)

    options = LOSSES[name].keywords  # type: ignore[attr-defined]
    settings: Any = SimpleNamespace(
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if name == "gspo" else "token",
        beta=0.0,
        loss_type="sapo" if name.startswith("sapo") else "grpo",
        epsilon_low=options.get("clip_low"),
        epsilon_high=options.get("clip_high"),
        args=SimpleNamespace(
            delta=None,
            sapo_temperature_pos=options.get("tau_pos"),
            sapo_temperature_neg=options.get("tau_neg"),
        ),
        use_vllm=cap is not None,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=False),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (
            padded(batch.logprobs),
            torch.zeros(sequences, width),
            None,
        ),
    )
    ids = torch.zeros(sequences, width, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": torch.stack([batch.advantages[batch.sequence_ids == s][0] for s in range(sequences)]),
        "old_per_token_logps": padded(batch.old_logprobs),
        "importance_sampling_ratio": padded(
            (batch.old_logprobs - batch.engine_logprobs).exp().clamp(max=CAP)
        ),
    }
    return GRPOTrainer._compute_loss(settings, None, inputs)


@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_trl(name: str, cap: float | None) -> None:
    batch = random_batch(3)
    theirs = trl_loss(name, batch, cap)
    # TRL holds its temperatures in float32, which 1.05 does not fit; the others' settings do.
    tolerance = 1e-6 if name == "sapo" else 1e-12
    assert run(name, batch, cap).item() == pytest.approx(theirs.item(), rel=tolerance)
    (expected,) = torch.autograd.grad(theirs, batch.logprobs)
    torch.testing.assert_close(gradient(name, batch, cap), expected, rtol=tolerance, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_eight_pieces_give_the_gradient_of_one(name: str) -> None:
    batch = random_batch(4)
    whole = run(name, batch, CAP)
    pieces = [run(name, batch.at(batch.sequence_ids == sequence), CAP) for sequence in range(len(LENGTHS))]
    assert sum(pieces).item() == pytest.approx(whole.item(), rel=1e-12)  # type: ignore[union-attr]
    for piece in pieces:
        piece.backward()
    torch.testing.assert_close(batch.logprobs.grad, gradient(name, batch, CAP), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_order_changes_nothing(name: str) -> None:
    batch = random_batch(5)
    order = torch.randperm(len(batch.logprobs), generator=torch.Generator().manual_seed(0))
    shuffled = batch.at(order)
    shuffled.logprobs = shuffled.logprobs.detach().requires_grad_()
    assert run(name, shuffled).item() == pytest.approx(run(name, batch).item(), rel=1e-12)
    torch.testing.assert_close(gradient(name, shuffled), gradient(name, batch)[order], rtol=1e-12, atol=1e-14)


def one_rank(rank: int, directory: Path) -> None:
    """Run half of the sequences on one of two ranks, and add up the gradients of shared parameters."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    gradients = {}
    for name in LOSSES:
        half = random_batch(6).at(random_batch(6).sequence_ids % 2 == rank)
        slope = torch.ones((), dtype=torch.float64, requires_grad=True)
        run(name, replace(half, logprobs=half.logprobs.detach() * slope), CAP).backward()
        assert slope.grad is not None
        dist.all_reduce(slope.grad)
        gradients[name] = slope.grad.item()
    dist.destroy_process_group()
    torch.save(gradients, directory / f"{rank}.pt")


def test_two_ranks_give_the_gradient_of_one(tmp_path: Path) -> None:
    on_two_ranks(one_rank, tmp_path)
    for name in LOSSES:
        batch = random_batch(6)
        slope = torch.ones((), dtype=torch.float64, requires_grad=True)
        run(name, replace(batch, logprobs=batch.logprobs.detach() * slope), CAP).backward()
        assert slope.grad is not None
        for rank in (0, 1):
            assert torch.load(tmp_path / f"{rank}.pt")[name] == pytest.approx(slope.grad.item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_every_gradient_is_the_plain_policy_gradient(name: str) -> None:
    batch = random_batch(7)
    batch.old_logprobs = batch.logprobs.detach().clone()
    sizes = torch.tensor(LENGTHS)[batch.sequence_ids]
    advantages = batch.advantages
    if name == "gspo":
        expected = -advantages / sizes / len(LENGTHS)
    else:
        expected = gradient("grpo", batch)
        torch.testing.assert_close(expected, -advantages / sizes / len(LENGTHS))
    torch.testing.assert_close(gradient(name, batch), expected, rtol=1e-12, atol=1e-14)


@given(
    log_ratio=st.floats(-15, 2.5),
    advantage=st.floats(-5, 5).filter(lambda a: abs(a) > 1e-3),
    tau_pos=st.floats(0.2, 8),
    tau_neg=st.floats(0.2, 8),
)
@settings(deadline=None, max_examples=200)
def test_sapo_weighs_each_token_by_4p1mp(
    log_ratio: float, advantage: float, tau_pos: float, tau_neg: float
) -> None:
    logprobs = torch.tensor([log_ratio - 20], dtype=torch.float64, requires_grad=True)
    tokens = SampledTokens(
        logprobs,
        old_logprobs=torch.tensor([-20.0], dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        sequence_ids=torch.tensor([0]),
        normalizer=1,
    )
    loss, metrics = sapo_loss(tokens, tau_pos=tau_pos, tau_neg=tau_neg)
    loss.backward()
    ratio = math.exp(logprobs.item() + 20)
    p = 1 / (1 + math.exp(-(tau_pos if advantage > 0 else tau_neg) * (ratio - 1)))
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(-4 * p * (1 - p) * ratio * advantage, rel=1e-8, abs=1e-12)
    gates = metrics["gate_pos" if advantage > 0 else "gate_neg"]
    assert gates.tolist() == pytest.approx([4 * p * (1 - p)])
    assert 0 <= gates.item() <= 1


@given(st.lists(st.floats(-1000, 0, width=32), min_size=1, max_size=8), st.sampled_from(sorted(LOSSES)))
@settings(deadline=None, max_examples=200)
def test_no_log_prob_makes_a_float32_loss_or_gradient_infinite(values: list[float], name: str) -> None:
    logprobs = torch.tensor(values, requires_grad=True)
    advantages = torch.tensor([(-1.0) ** t for t in range(len(values))])
    ids = torch.arange(len(values))
    loss, metrics = LOSSES[name](SampledTokens(logprobs, logprobs.detach().flip(0), advantages, ids, 1))
    loss.backward()
    assert logprobs.grad is not None
    assert loss.isfinite()
    assert logprobs.grad.isfinite().all()
    assert all(value.isfinite().all() for value in metrics.values())


def test_a_ratio_beyond_the_cut_has_no_gradient() -> None:
    logprobs = torch.tensor([-1.0, -MAX_LOG_RATIO - 2], requires_grad=True)
    old = torch.tensor([-MAX_LOG_RATIO - 2, -1.0])
    loss, _ = grpo_loss(SampledTokens(logprobs, old, torch.tensor([-1.0, -1.0]), torch.tensor([0, 1]), 2))
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, 0.0]


def test_a_nan_is_not_hidden() -> None:
    one = torch.ones(1)
    tokens = SampledTokens(torch.tensor([float("nan")]), -one, one, torch.tensor([0]), 1)
    for loss in LOSSES.values():
        assert loss(tokens)[0].isnan()


def test_importance_weights_are_cut_and_carry_no_gradient() -> None:
    old = torch.tensor([-1.0, -1.0, -3.0], requires_grad=True)
    weights = truncated_importance_weights(old, torch.tensor([-1.0, -9.0, -2.0]), cap=2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-1)])
    assert not weights.requires_grad


def test_clipped_tokens_are_counted_where_the_gradient_is_gone() -> None:
    for name in ("grpo", "gspo"):
        batch = random_batch(8)
        _, metrics = LOSSES[name](batch.tokens())
        gone = (gradient(name, batch) == 0) & (batch.advantages != 0)
        assert metrics["clipped_sum"].item() == gone.sum().item() > 0


def test_kl_estimate_is_that_of_the_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(8, generator=generator).log_softmax(0) for _ in range(2))
    drawn = torch.multinomial(old.exp(), 200_000, replacement=True, generator=generator)
    ids = torch.zeros(len(drawn), dtype=torch.long)
    metrics = ratio_metrics(SampledTokens(new[drawn], old[drawn], torch.ones(len(drawn)), ids, 1).log_ratios)
    expected = (old.exp() * (old - new)).sum()
    assert (metrics["kl_sum"] / metrics["num_tokens"]).item() == pytest.approx(expected.item(), rel=0.02)


def test_gate_quantiles_over_pieces() -> None:
    pieces = [
        {"gate_pos": torch.linspace(0, 0.5, 51), "gate_neg": torch.empty(0)},
        {"gate_pos": torch.linspace(0.51, 1, 50), "gate_neg": torch.empty(0)},
    ]
    assert gate_quantiles(pieces) == pytest.approx(
        {"gate/pos_p05": 0.05, "gate/pos_p50": 0.5, "gate/pos_p95": 0.95}
    )
    assert gate_quantiles([]) == {}


def test_a_piece_without_tokens_adds_nothing() -> None:
    empty, no_ids = torch.empty(0, requires_grad=True), torch.empty(0, dtype=torch.long)
    for loss in LOSSES.values():
        share, _ = loss(SampledTokens(empty, torch.empty(0), torch.empty(0), no_ids, 4))
        share.backward()
        assert share.item() == 0.0
