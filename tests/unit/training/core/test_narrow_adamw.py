"""AdamW over weights in bfloat16, or with moments in 8 bits: what is rounded, learned, saved and resumed."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from posttrain.config import DpoStage
from posttrain.config.learning import BYTES_HELD, OptimizerName
from posttrain.config.lora import LoraConfig
from posttrain.models.load import load_model
from posttrain.models.lora import with_lora
from posttrain.training.core.checkpoints import load_state, save_state, write_weights
from posttrain.training.core.distributed import ensure_process_group, rank
from posttrain.training.core.narrow_adamw import RoundedAdamW, rounded
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.sharding import Sharding, reduce_over_replicas, shard
from tests.unit.ranks import on_two_ranks

CPU = torch.device("cpu")
RATE = 1e-6
NARROW = [
    "adamw_bf16",
    pytest.param(
        "adamw_8bit",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("bitsandbytes") is None,
            reason="needs bitsandbytes (the extra adamw-8bit)",
        ),
    ),
]
BATCHES = torch.randint(300, 480, (3, 2, 24), generator=torch.Generator().manual_seed(0))


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Run:
    """A model of bfloat16 that learns three batches by heart, step by step."""

    def __init__(self, checkpoint: Path, name: OptimizerName, sharding: Sharding = "none") -> None:
        self.model = load_model(checkpoint, dtype="bfloat16")
        shard(self.model, sharding, CPU, masters=name != "adamw_bf16")
        self.optimizer = build_optimizer([self.model], name, RATE, 0.01)

    def train(self, steps: range) -> None:
        for step in steps:
            loss_of(self.model, BATCHES[step % len(BATCHES)]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self, directory: Path) -> None:
        write_weights(self.model, directory)
        save_state(directory, self.model, self.optimizer, {})

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments, gathered."""
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        states = [(f"{n}.{k}", v) for n, p in trained for k, v in self.optimizer.state[p].items()]
        return {name: whole(tensor.detach()).clone() for name, tensor in trained + states}


def loss_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_rounding_is_right_in_the_mean():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(500, generator=generator) * 10.0 ** torch.randint(
        -30, 30, (500,), generator=generator
    )
    draws = torch.Generator().manual_seed(1)
    trials = 10_000
    results = torch.stack([rounded(values, draws) for _ in range(trials)]).double()
    lower, upper = results.amin(0), results.amax(0)
    unit = torch.ldexp(torch.ones(500, dtype=torch.float64), torch.frexp(values).exponent - 8)
    assert (upper - lower <= unit).all()  # never further than the two neighbours
    share = (values.double() - lower) / unit
    error = (results.mean(0) - values) / (unit * (share * (1 - share) / trials).sqrt().clamp(min=1e-3))
    assert error.abs().max() < 5
    assert error.pow(2).mean() == pytest.approx(1, abs=0.3)


def test_what_bfloat16_holds_is_not_rounded():
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    numbers = every[~every.isnan()]
    found = rounded(numbers.float(), torch.Generator().manual_seed(0))
    assert torch.equal(found.view(torch.int16), numbers.view(torch.int16))
    assert rounded(torch.tensor([float("nan")]), torch.Generator()).isnan().all()


@pytest.mark.parametrize(("optimizer", "share"), [(RoundedAdamW, 1.0), (torch.optim.AdamW, 0.0)])
def test_updates_far_below_a_rounding_unit_add_up(optimizer, share):
    """And do not where torch's AdamW rounds to the nearest: each is a 400th of the unit."""
    weights = nn.Parameter(torch.ones(200, 200, dtype=torch.bfloat16))
    made = optimizer([{"params": [weights], "weight_decay": 0.0}], 1e-5)
    for _ in range(100):
        weights.grad = torch.ones_like(weights)
        made.step()
    moved = 1 - weights.double()
    assert moved.mean().item() == pytest.approx(share * 100 * 1e-5, rel=0.05)
    assert moved.max() <= 8 * 2**-8  # a step's draws say nothing of the next one's


@pytest.mark.parametrize("name", NARROW)
def test_a_large_parameter_is_updated_piece_by_piece(monkeypatch, name):
    results = []
    for piece in (2**24, 256):
        monkeypatch.setattr("posttrain.training.core.narrow_adamw.PIECE", piece)
        start = torch.linspace(-1, 1, 7 * 128).view(7, 128)
        weights = nn.Parameter(start.bfloat16() if name == "adamw_bf16" else start)
        made = build_optimizer([nn.ParameterDict({"weights": weights})], name, 0.01, 0.1)
        for step in range(3):
            weights.grad = (step + 1) * weights.detach()
            made.step()
        results.append((weights.detach(), made.state[weights]))
    (at_once, states), (weights, pieces) = results
    torch.testing.assert_close(weights, at_once, rtol=0, atol=2**-7)  # other draws
    assert same(states, pieces)


@pytest.mark.parametrize("name", NARROW)
def test_a_bfloat16_model_learns_as_much_as_by_plain_adamw(tiny_checkpoint, name):
    """Judged in float32, after twelve steps; weights rounded to the nearest lose most of it."""
    batch, rate = BATCHES.flatten(0, 1), 1e-5

    def gained(held: OptimizerName, updated_by: OptimizerName) -> float:
        model = Run(tiny_checkpoint, held).model
        optimizer = build_optimizer([model], updated_by, rate, 0.01)
        losses = []
        for steps in (0, 12):
            for _ in range(steps):
                loss_of(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
            judge = load_model(tiny_checkpoint, dtype="float32")
            with torch.no_grad():
                for mine, learned in zip(judge.parameters(), model.parameters(), strict=True):
                    mine.copy_(whole(learned))
                losses.append(loss_of(judge, batch).item())
        return losses[0] - losses[1]

    full = gained("adamw", "adamw")
    assert full > 0
    assert gained(name, name) / full == pytest.approx(1, abs=0.05)
    assert gained("adamw_bf16", "adamw") / full < 0.5


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_gradients_of_micro_batches_are_added_up_in_float32(tiny_checkpoint, sharding):
    """And rounded once: to what the float32 sum is in bfloat16."""
    gradients = []
    for name in ("adamw", "adamw_bf16"):
        model = Run(tiny_checkpoint, name, sharding).model
        for number, ids in enumerate(BATCHES, 1):
            reduce_over_replicas(model, number == len(BATCHES))
            loss_of(model, ids).backward()
        gradients.append([whole(p.grad) for p in model.parameters() if p.grad is not None])
    full, narrow = gradients
    assert all(p.dtype == torch.bfloat16 for p in narrow)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(full, narrow, strict=True))


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("with_state", [True, False])
def test_a_resumed_run_goes_on_bit_for_bit(tiny_checkpoint, tmp_path, name, with_state):
    """And, as the negative control, it does not where the state is left out."""
    run = Run(tiny_checkpoint, name)
    run.train(range(2))
    run.save(tmp_path)
    resumed = Run(tmp_path, name)
    if with_state:
        load_state(tmp_path, resumed.model, resumed.optimizer)
        assert same(run.tensors(), resumed.tensors())
    for each in (run, resumed):
        each.train(range(2, 4))
    assert same(run.tensors(), resumed.tensors()) == with_state


@pytest.mark.parametrize(
    ("name", "held", "saved"), [("adamw", (4, 8), 12), ("adamw_8bit", (4, 2), 6), ("adamw_bf16", (2, 8), 8)]
)
def test_bytes_of_a_parameter(tiny_checkpoint, tmp_path, name, held, saved):
    """Weights in bfloat16 are exact in the checkpoint's, so the state has none; scales take little."""
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    run = Run(tiny_checkpoint, name)
    run.train(range(1))
    run.save(tmp_path)
    trained = [p for p in run.model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    states = [v for p in trained for v in run.optimizer.state[p].values()]
    assert sum(p.nbytes for p in trained) / count == held[0]
    assert sum(v.nbytes for v in states) / count == pytest.approx(held[1], rel=0.05)
    size = sum(path.stat().st_size for path in (tmp_path / "state").glob("*.safetensors"))
    assert size / count == pytest.approx(saved, rel=0.05)
    config = {"stage": "dpo", "data": {"mixture": {"pairs": 1.0}}, "optimizer": name}
    assert DpoStage.model_validate(config).float32_masters == (held[0] == 4)
    assert sum(BYTES_HELD[name]) == pytest.approx(sum(held) + 4, abs=0.1)


def test_what_is_made_of_small_rows_keeps_its_moments_in_float32():
    pytest.importorskip("bitsandbytes")
    shapes = {"blocks": (3, 192), "small": (4, 100), "vector": (256,), "experts": (2, 16, 16)}
    module = nn.ParameterDict({name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()})
    made = build_optimizer([module], "adamw_8bit", 0.01, 0.0)
    for parameter in module.values():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    found = {name: made.state[parameter] for name, parameter in module.items()}
    assert {name: state["exp_avg"].dtype for name, state in found.items()} == {
        "blocks": torch.uint8,
        "small": torch.float32,
        "vector": torch.float32,
        "experts": torch.uint8,
    }
    assert found["blocks"]["exp_avg_scale"].shape == (3, 3)
    assert found["experts"]["exp_avg_sq_scale"].shape == (2, 1)
    for parameter in module.values():
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 0.99))


def test_adapters_learn_with_moments_in_8_bits(tiny_checkpoint):
    pytest.importorskip("bitsandbytes")
    model = with_lora(load_model(tiny_checkpoint, dtype="bfloat16"), LoraConfig(rank=4), 0)
    shard(model, "none", CPU)
    optimizer = build_optimizer([model], "adamw_8bit", 1e-2, 0.0)
    losses = []
    for _ in range(6):
        loss = model(input_ids=BATCHES[0], labels=BATCHES[0]).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.05
    held = {state["exp_avg"].dtype for state in optimizer.state.values()}
    assert held == {torch.uint8, torch.float32}  # rows of four numbers have no block


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ModuleNotFoundError, match=r"adamw_8bit needs .*'posttrain\[adamw-8bit\]'"):
        build_optimizer([nn.Linear(2, 2)], "adamw_8bit", 0.01, 0.0)


def one_rank(number: int, checkpoint: Path, output: Path, name: OptimizerName) -> None:
    """Two replicas, and two shards that leave a checkpoint and go on from it."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{output}/store", rank=number, world_size=2
    )
    ensure_process_group(CPU)
    replicas = Run(checkpoint, name)
    replicas.train(range(2))
    mine = [p.to_local() for p in replicas.model.parameters() if isinstance(p, DTensor)]
    for tensor in mine:
        other = tensor.clone()
        torch.distributed.broadcast(other, 0)
        assert torch.equal(other, tensor)
    sharded = Run(checkpoint, name, "fsdp2")
    sharded.train(range(2))
    sharded.save(output / "checkpoint")
    tensors = sharded.tensors()
    if rank() == 0:
        torch.save(tensors, output / "tensors.pt")
    torch.distributed.barrier()
    resumed = Run(output / "checkpoint", name, "fsdp2")
    load_state(output / "checkpoint", resumed.model, resumed.optimizer)
    for each in (sharded, resumed):
        each.train(range(2, 3))
    assert same(sharded.tensors(), resumed.tensors())
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_replicas_stay_equal_and_one_rank_goes_on_from_two(tiny_checkpoint, tmp_path, name):
    on_two_ranks(one_rank, tiny_checkpoint, tmp_path, name)
    alone = Run(tmp_path / "checkpoint", name)
    load_state(tmp_path / "checkpoint", alone.model, alone.optimizer)
    assert same(alone.tensors(), torch.load(tmp_path / "tensors.pt"))
    alone.train(range(2, 3))
