"""Activations in the host's memory: the same training, by copies of each layer's input.

On a CPU a run is refused it; the worker that is tested here copies from the host to the host.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers.modeling_utils
from safetensors.torch import load_file
from torch.autograd.graph import save_on_cpu

from posttrain.config import RunConfig
from posttrain.config.base import MisfitError
from posttrain.quickstart import marker_scenes
from posttrain.run.directory import RunDir
from posttrain.training.supervised.sft import sft_worker
from tests.stage_jobs import job_of

STEPS = 3


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of every tensor that is copied to the host, in order."""
    sizes: list[int] = []

    class Counting(save_on_cpu):
        def __init__(self, **settings: Any) -> None:
            super().__init__(device_type=settings["device_type"])  # pinned memory takes an accelerator
            pack = self.pack_hook

            def counted(tensor: Any) -> Any:
                sizes.append(tensor.nbytes)
                return pack(tensor)

            self.pack_hook = counted

    monkeypatch.setattr(transformers.modeling_utils, "save_on_cpu", Counting)
    return sizes


def test_a_cpu_has_nothing_to_offload_to(tiny_checkpoint: Path) -> None:
    stage = {"stage": "sft", "data": {"mixture": {"a": 1.0}}, "max_steps": 1, "offload_activations": True}
    run = {"name": "r", "model": {"name_or_path": str(tiny_checkpoint)}, "stages": [stage]}
    config = RunConfig.model_validate(run)
    assert config.on(1).stages[0].gradient_checkpointing  # type: ignore[union-attr]
    with pytest.raises(MisfitError, match=r"stages\[0\].offload_activations: a CPU's activations"):
        config.on(0)
    run["stages"] = [stage | {"gradient_checkpointing": False}]
    with pytest.raises(ValueError, match="without gradient_checkpointing there are too many"):
        RunConfig.model_validate(run)


def train(name: str, checkpoint: Path, folder: Path, **keys: Any) -> tuple[list[float], Path]:
    """Train on a few scenes; return the losses, and the final weights."""
    source = {"path": str(folder / "zoom" / "data.jsonl")}
    dataset = {"name": "zoom", "description": "Scenes.", "licence": "CC0-1.0", "source": source}
    (folder / "zoom.yaml").write_text(json.dumps(dataset))
    stage = {
        "stage": "sft",
        "data": {"mixture": {"zoom.yaml": 1.0}, "packing": True, "max_length": 1024},
        "max_steps": STEPS,
        "per_device_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
    }
    config = RunConfig.model_validate(
        {
            "name": name,
            "output_dir": str(folder / "runs"),
            "base_dir": str(folder),
            "model": {"name_or_path": str(checkpoint), "dtype": "float32"},
            "stages": [stage | keys],
            "trackers": [],
        }
    )
    run = RunDir.create(config, resume=False)
    sft_worker(job_of(config, run, checkpoint))
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    newest = run.newest_checkpoint("sft")
    assert newest is not None
    return [row["loss"] for row in rows if "loss" in row], newest / "model.safetensors"


def test_losses_and_weights_are_those_without(
    tiny_checkpoint: Path, tmp_path: Path, copies: list[int]
) -> None:
    (tmp_path / "zoom").mkdir()
    marker_scenes.write(tmp_path / "zoom", kind="zoom", split="sft", count=24, sloppiness=0.5)
    losses, weights = train("plain", tiny_checkpoint, tmp_path)
    assert len(losses) == STEPS
    assert not copies
    offloaded, theirs = train(
        "offloaded", tiny_checkpoint, tmp_path, gradient_checkpointing=True, offload_activations=True
    )
    assert offloaded == pytest.approx(losses, rel=1e-5)
    before, after = load_file(weights), load_file(theirs)
    assert max((before[name] - tensor).abs().max().item() for name, tensor in after.items()) < 1e-5
    # Of each of the four layers at least its input was copied, at every step, and no layer's weights.
    assert len(copies) >= 4 * STEPS
    assert max(copies) < 128 * 384 * 4
