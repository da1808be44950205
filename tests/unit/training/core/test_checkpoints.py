"""The state of training, saved and restored; see test_sharding.py for other numbers of ranks."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from posttrain.config.learning import OptimizerName
from posttrain.models.load import load_model
from posttrain.models.supervised_head import add_supervised_head
from posttrain.training.core.checkpoints import StateError, load_state, save_state, write_weights
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.sharding import shard

CPU = torch.device("cpu")


def trainee(checkpoint: Path, optimizer: OptimizerName = "adamw") -> tuple[Any, torch.optim.Optimizer]:
    model: Any = load_model(checkpoint, dtype="bfloat16")
    add_supervised_head(model)
    shard(model, "fsdp2", CPU)
    return model, build_optimizer([model], optimizer, 1e-3, 0.1)


def step(model: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    ids = torch.randint(10, 100, (2, 24), generator=torch.Generator().manual_seed(seed))
    (-model(input_ids=ids, supervised_labels=ids).mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def masters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.full_tensor() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_goes_on_bit_for_bit(
    tiny_checkpoint: Path, tmp_path: Path, optimizer: OptimizerName
) -> None:
    model, updates = trainee(tiny_checkpoint, optimizer)
    step(model, updates, 0)
    with torch.no_grad():  # as before a measurement: FSDP2 leaves some weights gathered after it
        model(input_ids=torch.tensor([[11, 12]]), supervised_labels=torch.tensor([[11, 12]]))
    save_state(tmp_path, model, updates, {"updates": 1})
    again, resumed = trainee(tiny_checkpoint, optimizer)
    assert load_state(tmp_path, again, resumed) == {"updates": 1}
    for each, its_updates in ((model, updates), (again, resumed)):
        step(each, its_updates, 1)
    ours, theirs = masters(model), masters(again)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_are_written_in_the_type_of_the_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, updates = trainee(tiny_checkpoint)
    step(model, updates, 0)
    for _ in range(2):  # writing does not change what the model takes for its type
        write_weights(model, tmp_path)
    written = load_model(tmp_path, dtype="bfloat16")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(written).__name__]
    weights = written.state_dict()
    for name, master in masters(model).items():
        assert torch.equal(weights[name], master.bfloat16())


def test_the_state_of_another_model_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, updates = trainee(tiny_checkpoint)
    step(model, updates, 0)
    save_state(tmp_path, model, updates, {})
    other = load_model(tiny_checkpoint, dtype="bfloat16", freeze_merger=True)
    shard(other, "none", CPU)
    with pytest.raises(StateError, match=r"/state holds the state of .*merger.*, which this stage does not"):
        load_state(tmp_path, other, build_optimizer([other], "adamw", 1e-3, 0.0))


def test_the_state_of_another_optimizer_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, updates = trainee(tiny_checkpoint)
    save_state(tmp_path, model, updates, {})
    again, other = trainee(tiny_checkpoint, "muon")
    with pytest.raises(StateError, match=r"/state holds the state of AdamW, not of MuonWithAdamW: set"):
        load_state(tmp_path, again, other)


@pytest.mark.parametrize("shape", [(6, 4), (6,)])
@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_an_optimiser_of_one_kind_of_parameters_alone(name: OptimizerName, shape: tuple[int, ...]) -> None:
    """Adapters are matrices alone; what norms are trained alone are vectors."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.ones(shape))
    optimizer = build_optimizer([module], name, 0.1, 0.0)
    module.weight.grad = torch.ones(shape)
    optimizer.step()
    assert (module.weight < 1.0).all()
    build_optimizer([module], name, 0.1, 0.0).load_state_dict(optimizer.state_dict())
