"""A stage that goes on from a checkpoint ends as if it had not stopped, whatever its model and weights."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from posttrain.config import RunConfig
from posttrain.quickstart.tiny import TINY_TYPES, build_tiny
from posttrain.run.directory import RunDir
from posttrain.training.core.update_guard import UpdateGuard
from posttrain.training.supervised import trl_stage
from posttrain.training.supervised.sft import sft_worker
from tests.stage_jobs import job_of, write_scenes

STEPS = 3

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra qlora)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder, 4)
    return folder


def trained(checkpoint: Path, folder: Path, output: Path, stops: tuple[int, ...], **settings: Any) -> RunDir:
    """Train a stage that is stopped after some steps, and goes on each time."""
    stage = {
        "stage": "sft",
        "data": {"mixture": {"scenes.yaml": 1.0}},
        "max_steps": STEPS,
        "per_device_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
    }
    config = RunConfig.model_validate(
        {
            "name": "stopped" if len(stops) > 1 else "at-once",
            "output_dir": str(output),
            "base_dir": str(folder),
            "model": {"name_or_path": str(checkpoint), "dtype": settings.pop("dtype")},
            "stages": [stage | settings],
            "trackers": [],
        }
    )
    run = RunDir.create(config, resume=False)
    for until in stops:
        sft_worker(job_of(config, run, checkpoint, until=until))
    return run


def assert_ends_alike(checkpoint: Path, folder: Path, output: Path, **settings: Any) -> None:
    """Check that losses and weights of a stage do not tell whether it was stopped."""
    losses, weights = [], []
    for stops in ((STEPS,), (1, STEPS)):
        run = trained(checkpoint, folder, output, stops, **settings)
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
        final = run.newest_checkpoint("sft")
        assert final is not None
        [path] = final.glob("*.safetensors")
        weights.append(load_file(path))
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# Weights of these families have other names, or other axes, in a published checkpoint than in memory.
@pytest.mark.parametrize("model_type", [each for each in TINY_TYPES if each != "qwen3_vl"])
@pytest.mark.parametrize(("dtype", "optimizer"), [("float32", "adamw"), ("bfloat16", "adamw_bf16")])
def test_weights_are_those_of_the_checkpoint(model_type, dtype, optimizer, folder, tmp_path):
    build_tiny(model_type, tmp_path / "model")
    assert_ends_alike(tmp_path / "model", folder, tmp_path, dtype=dtype, optimizer=optimizer)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_over_quantised_weights_are_not_rounded(dtype, tiny_checkpoint, folder, tmp_path):
    lora = {"rank": 4, "quantization": "nf4"}
    assert_ends_alike(tiny_checkpoint, folder, tmp_path, dtype=dtype, lora=lora)


def test_every_rank_knows_how_many_updates_were_skipped_in_a_row(
    tiny_checkpoint, folder, tmp_path, monkeypatch
):
    """Also one that is new: ranks that disagree look for broken gradients apart, and wait for each other."""
    known = []

    def broken(guard: UpdateGuard, named: object) -> list[str]:
        known.append(guard.in_a_row)
        return []

    monkeypatch.setattr(UpdateGuard, "broken", broken)
    monkeypatch.setattr(trl_stage, "clip_gradients", lambda parameters, norm: math.nan)
    run = trained(tiny_checkpoint, folder, tmp_path, (1,), dtype="float32")
    stopped = run.newest_checkpoint("sft")
    assert stopped is not None
    (stopped / "figures_0.json").unlink()  # as for the second of two ranks where there was one
    config = RunConfig.model_validate(yaml.safe_load((run.path / "config.yaml").read_text()))
    sft_worker(job_of(config, run, tiny_checkpoint, until=2, resume=stopped))
    assert known == [0, 1]
