"""SAPO, GRPO, GSPO, CISPO: against their formulas in float64, against TRL, and what must not change them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives.packed import (
    MAX_LOG_RATIO,
    SampledTokens,
    ratio_metrics,
    truncated_importance_weights,
)
from posttrain.objectives.policy_gradient import grpo_loss
from posttrain.objectives.sapo import gate_quantiles, sapo_loss
from tests.unit.objectives.packed_batches import (
    CAP,
    LENGTHS,
    LONGEST,
    LOSSES,
    MEANS,
    Batch,
    Options,
    random_batch,
    trl_loss,
)
from tests.unit.ranks import on_two_ranks


def run(name: str, batch: Batch, cap: float | None = None, mean: str = "sequence") -> Tensor:
    return LOSSES[name](batch.tokens(cap, mean))[0]


def gradient(name: str, batch: Batch, cap: float | None = None, mean: str = "sequence") -> Tensor:
    (result,) = torch.autograd.grad(run(name, batch, cap, mean), batch.logprobs)
    return result


def formula(name: str, batch: Batch, cap: float | None, mean: str) -> float:
    """Compute the papers' formulas literally, by loops over Python floats."""
    total = 0.0
    given = LOSSES[name].keywords  # type: ignore[attr-defined]
    for sequence, length in enumerate(LENGTHS):
        tokens = [t for t in range(len(batch.sequence_ids)) if batch.sequence_ids[t] == sequence]
        ratios = [math.exp(batch.logprobs[t].item() - batch.old_logprobs[t].item()) for t in tokens]
        geometric_mean = math.prod(ratios) ** (1 / len(tokens))
        for t, ratio in zip(tokens, ratios, strict=True):
            advantage = batch.advantages[t].item()
            off_policy = math.exp(batch.old_logprobs[t].item() - batch.engine_logprobs[t].item())
            weight = 1.0 if cap is None else min(off_policy, cap)
            if name.startswith("sapo"):
                tau = given["tau_pos" if advantage > 0 else "tau_neg"]
                value = 1 / (1 + math.exp(-tau * (ratio - 1))) * 4 / tau * advantage
            elif name == "cispo":
                value = min(ratio, 1 + given["clip_high"]) * advantage * batch.logprobs[t].item()
            else:
                r = geometric_mean if name.startswith("gspo") else ratio
                bounded = min(max(r, 1 - given["clip_low"]), 1 + given["clip_high"])
                value = min(r * advantage, bounded * advantage)
                if "dual_clip" in given and advantage < 0:
                    value = max(value, given["dual_clip"] * advantage)
            total += weight * value / (length if mean == "sequence" else 1)
    sizes = {"sequence": len(LENGTHS), "token": sum(LENGTHS), "constant": len(LENGTHS) * LONGEST}
    return -total / sizes[mean]


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_its_formula(name: str, cap: float | None, mean: str) -> None:
    for seed in range(3):
        batch = random_batch(seed)
        expected = formula(name, batch, cap, mean)
        assert run(name, batch, cap, mean).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cispo"])  # its weights have none
def test_gradient_equals_finite_differences(name: str, cap: float | None) -> None:
    batch = random_batch(0)
    assert torch.autograd.gradcheck(
        lambda logprobs: run(name, replace(batch, logprobs=logprobs), cap), batch.logprobs
    )


def test_every_token_has_a_gradient_in_cispo_and_its_weight_is_bounded() -> None:
    batch = random_batch(0)
    ratios = (batch.logprobs - batch.old_logprobs).exp().detach()
    sizes = torch.tensor(LENGTHS)[batch.sequence_ids]
    assert (ratios > 1.3).any()
    expected = -ratios.clamp(max=1.3) * batch.advantages / sizes / len(LENGTHS)
    torch.testing.assert_close(gradient("cispo", batch), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_trl(name: str, cap: float | None) -> None:
    batch = random_batch(3)
    theirs = trl_loss(name, batch, Options(cap=cap))
    mean = "token" if name == "cispo" else "sequence"
    # TRL holds its temperatures in float32, which 1.05 does not fit; the others' settings do.
    assert_equal(batch, run(name, batch, cap, mean), theirs, 1e-6 if name == "sapo" else 1e-12)


def assert_equal(batch: Batch, ours: Tensor, theirs: Tensor, tolerance: float = 1e-12) -> None:
    """The losses are the same, and so are their gradients."""
    assert ours.item() == pytest.approx(theirs.item(), rel=tolerance)
    found, expected = (torch.autograd.grad(loss, batch.logprobs)[0] for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-14)


@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("loss_type", ["bnpo", "dapo", "dr_grpo"])
def test_means_over_tokens_equal_trl(loss_type: str, cap: float | None) -> None:
    batch = random_batch(9)
    mean = next(mean for mean, theirs in MEANS.items() if loss_type in theirs)
    for name in ("grpo", "grpo-dual"):
        ours = run(name, batch, cap, mean)
        assert_equal(batch, ours, trl_loss(name, batch, Options(loss_type, cap)))


@pytest.mark.parametrize(("name", "loss_type"), [("grpo", "grpo"), ("grpo", "dapo"), ("cispo", "cispo")])
def test_masked_episodes_equal_trl(name: str, loss_type: str) -> None:
    """They have no loss; they count as sequences, and their tokens do not."""
    batch, masked = random_batch(10), (2, 5)
    theirs = trl_loss(name, batch, Options(loss_type, masked=masked))
    kept = batch.at(~torch.isin(batch.sequence_ids, torch.tensor(masked)))
    mean = "sequence" if loss_type == "grpo" else "token"
    ours = LOSSES[name](kept.tokens(None, mean, left=len(kept.logprobs)))[0]
    assert_equal(batch, ours, theirs)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("name", LOSSES)
def test_eight_pieces_give_the_gradient_of_one(name: str, mean: str) -> None:
    batch = random_batch(4)
    whole = run(name, batch, CAP, mean)
    parts = [batch.at(batch.sequence_ids == sequence) for sequence in range(len(LENGTHS))]
    pieces = [run(name, part, CAP, mean) for part in parts]
    assert sum(pieces).item() == pytest.approx(whole.item(), rel=1e-12)  # type: ignore[union-attr]
    for piece in pieces:
        piece.backward()
    torch.testing.assert_close(batch.logprobs.grad, gradient(name, batch, CAP, mean), rtol=1e-12, atol=1e-14)


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
    if name.startswith("gspo"):
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


@pytest.mark.parametrize("name", ["grpo", "gspo", "grpo-dual", "gspo-dual"])
def test_clipped_tokens_are_counted_where_the_gradient_is_gone(name: str) -> None:
    batch = random_batch(8)
    _, metrics = LOSSES[name](batch.tokens())
    gone = (gradient(name, batch) == 0) & (batch.advantages != 0)
    assert sum(metrics.values()).item() == gone.sum().item()  # type: ignore[union-attr]
    assert all(count > 0 for count in metrics.values()) or name == "gspo-dual"
    assert metrics["clipped_high_sum"] == (gone & (batch.advantages > 0)).sum()


def test_weights_that_were_cut_are_counted() -> None:
    batch = random_batch(8)
    _, metrics = LOSSES["cispo"](batch.tokens())
    assert metrics["clipped_high_sum"] == ((batch.logprobs - batch.old_logprobs).exp() > 1.3).sum() > 0


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
