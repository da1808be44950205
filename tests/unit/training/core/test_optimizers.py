import pytest
import torch
from torch import nn

from posttrain.config.learning import OptimizerName
from posttrain.training.core.optimizers import MUON_RATE, build_optimizer


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"embed_tokens": nn.Embedding(5, 4), "layer": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}
    )


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_trained_parameter_is_in_one_group_and_moves(name: OptimizerName):
    module = model()
    next(module["norm"].parameters()).requires_grad_(False)
    optimizer = build_optimizer([module], name, 0.1, 0.01)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = {p for p in module.parameters() if p.requires_grad}
    assert len(grouped) == len(trained)
    assert set(grouped) == trained
    before = [p.clone() for p in grouped]
    for parameter in grouped:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, grouped, strict=True))
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in grouped)


def test_muon_takes_the_matrices_and_a_schedule_reaches_both_parts():
    optimizer = build_optimizer([model()], "muon", 0.1, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1 * MUON_RATE, 0.1]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05 * MUON_RATE, 0.05]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_survives_a_round_trip(name: OptimizerName, tmp_path):
    runs = []
    for interrupted in (False, True):
        module = model()
        optimizer = build_optimizer([module], name, 0.1, 0.01)
        torch.manual_seed(1)
        for step in range(4):
            if interrupted and step == 2:
                torch.save(optimizer.state_dict(), tmp_path / "state.pt")
                optimizer = build_optimizer([module], name, 0.1, 0.01)
                optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            for parameter in module.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        runs.append([parameter.clone() for parameter in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
