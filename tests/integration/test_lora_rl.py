"""RL of adapters by a file as a user writes it; every part is real."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from posttrain.models.lora import base_of, is_adapter

pytestmark = pytest.mark.slow

BREVITY = """
from rewards import RewardInput, reward

@reward("brevity")
def brevity(x: RewardInput) -> float:
    return 1 / max(1, len(x.completion_ids))
"""
SCENES = """
name: scenes
description: Scenes and questions.
licence: Apache-2.0
source: {generator: marker_scenes, params: {kind: question, split: train, count: 12, seed: 0}}
"""
RL: dict[str, Any] = {
    "stage": "rl",
    "algorithm": {"name": "sapo", "group_size": 4, "mini_batches": 1},
    "prompts_per_step": 2,
    "learning_rate": 5e-3,
    "num_workers": 1,
}
ROLLOUT: dict[str, Any] = {
    "max_new_tokens": 16,
    "max_length": 256,
    "engine": {"kv_cache_gb": 0.125, "max_num_seqs": 32},
}
#: Layers of the language model, of the vision tower and of what joins them.
TARGETS = r".*(language_model.*\.(q_proj|down_proj)|visual.*\.(qkv|linear_fc1))"
TIMEOUT = 240


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prompts and a reward, to which a recipe is added."""
    (tmp_path / "brevity.py").write_text(BREVITY, encoding="utf-8")
    (tmp_path / "scenes.yaml").write_text(SCENES, encoding="utf-8")
    return tmp_path


def write(folder: Path, model: dict[str, Any], stage: dict[str, Any]) -> None:
    """Write a recipe of a stage that is measured at its end."""
    task = {"data": "scenes.yaml", "rewards": ["brevity.py:brevity"]}
    measured = task | {"name": "measured", "num_samples": 4}
    recipe = {
        "name": "learned",
        "model": model | {"dtype": "float32"},
        "cluster": {"num_gpus": 0, "num_cpus": 2},
        "stages": [RL | {"tasks": [task]} | stage],
        "evaluation": {"stages": ["rl"], "tasks": [measured]},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "posttrain.cli", "run", "recipe.yaml", "output_dir=runs", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        start_new_session=True,
        env=os.environ | {"POSTTRAIN_CACHE": str(folder / "cache")},
    )


def finish(process: "subprocess.Popen[str]") -> None:
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name, value in one.items() if (value - other[name]).abs().max() > 1e-6}


def test_adapters_published_alone_ahead_and_resumed(folder: Path, make_talker: Callable[..., Path]) -> None:
    """Adapters of the vision side too, swapped under turns in flight; the end is merged and served."""
    base = make_talker(11)
    rollout = ROLLOUT | {"max_staleness": 2, "publish": "adapter"}
    lora = {"rank": 4, "target_modules": TARGETS}
    stage = {"name": "rl", "max_steps": 4, "save_steps": 2, "lora": lora, "rollout": rollout}
    write(folder, {"name_or_path": str(base), "freeze_vision_tower": False}, stage)
    run = folder / "runs" / "learned"
    process = start(folder)
    deadline = time.monotonic() + TIMEOUT
    while not (run / "rl" / "checkpoint-2" / "manifest.json").is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(start(folder, "--resume"))
    metrics = rows(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert "logprob_gap/max" in metrics[0]
    assert "publish/proof_gap" in metrics[0].keys() & metrics[2].keys()  # the first step of each process
    for row in metrics:  # what is learned last need not be published
        assert row.get("publish/proof_gap", 0.0) < 1e-4
        assert row["staleness/max"] <= 2
        assert row["update/skipped"] == 0
        assert row.get("logprob_gap/max", 0.0) < 1e-4
    final = run / "rl" / "checkpoint-4"
    assert is_adapter(final)
    assert base_of(final) == str(base)
    found = load_file(final / "adapter_model.safetensors")
    assert any("visual.blocks" in name for name in found)
    assert any("merger" in name for name in found)
    merged = load_file(run / "rl" / "merged" / "checkpoint-4" / "model.safetensors")
    model: Any = AutoModelForImageTextToText.from_pretrained(base)
    told = PeftModel.from_pretrained(model, str(final)).merge_and_unload().state_dict()
    assert not differ(merged, {name: told[name] for name in merged})
    changed = differ(merged, load_file(base / "model.safetensors"))
    assert any("visual.blocks" in name for name in changed)
    [measured] = rows(run / "evaluation.jsonl")
    assert (measured["stage"], measured["step"]) == ("rl", 4)
