"""The state of training, saved and restored on a GPU, with every optimiser."""

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.learning import OptimizerName
from posttrain.models.load import load_model
from posttrain.training.core.checkpoints import load_state, save_state, write_weights
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.sharding import shard

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "adamw_bf16", "muon"])
def test_training_goes_on_as_if_it_had_not_stopped(
    tiny_checkpoint: Path, tmp_path: Path, name: OptimizerName
) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")

    def trainee(checkpoint: Path) -> tuple[Any, torch.optim.Optimizer]:
        model = load_model(checkpoint, dtype="bfloat16")
        shard(model, "none", torch.device("cuda"), masters=name != "adamw_bf16")
        return model, build_optimizer([model], name, 1e-4, 0.1)

    def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
        ids = torch.arange(300, 364, device="cuda")[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = trainee(tiny_checkpoint)
    step(model, optimizer)
    write_weights(model, tmp_path)
    save_state(tmp_path, model, optimizer, {})
    again, resumed = trainee(tmp_path)
    load_state(tmp_path, again, resumed)
    step(model, optimizer)
    step(again, resumed)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-2, atol=1e-5)
