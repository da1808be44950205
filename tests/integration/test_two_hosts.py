"""A run over two hosts that have nothing in common but a wire and the folder of the data."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.two_hosts import SHARED, TwoHosts, two_hosts, why_not
from tests.zoomer import train_zoomer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two_hosts")]

RECIPE = """
name: tools
output_dir: {runs}
model: {{name_or_path: model, dtype: float32}}
cluster: {{num_gpus: 0{where}}}
stages:
  - stage: rl
    algorithm: {{name: sapo, group_size: 4, mini_batches: 2}}
    tasks:
      - data: scenes.yaml
        tools: [image_zoom_in]
        max_turns: 3
        rewards: [answer_accuracy, {{name: tool_calls, weight: 0.2}}]
    prompts_per_step: 4
    max_steps: 2
    save_steps: 2
    learning_rate: 1.0e-3
    num_workers: 2
    rollout:
      actors: 2
      max_new_tokens: 64
      max_length: 512
      engine: {{kv_cache_gb: 0.25, max_num_seqs: 32{ranks}}}
"""
SCENES = """
name: scenes
description: Scenes and questions.
licence: Apache-2.0
source: {generator: marker_scenes, params: {kind: question, split: train, count: 16, seed: 0}}
"""
TIMEOUT = 400


@pytest.fixture(scope="module", autouse=True)
def _allowed() -> None:
    if reason := why_not():
        pytest.skip(f"two hosts are not tried: {reason}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both hosts see: a model, a dataset and the recipe; each has a folder `runs` of its own."""
    folder = tmp_path_factory.mktemp("shared")
    train_zoomer(folder / "model", tmp_path_factory.mktemp("zooms"))
    (folder / "scenes.yaml").write_text(SCENES, encoding="utf-8")
    for name in ("runs", "one", "cache", "apart"):
        (folder / name).mkdir()
    one = RECIPE.format(runs=folder / "one", where=", num_cpus: 2", ranks="")
    (folder / "one.yaml").write_text(one, encoding="utf-8")
    ranks = ", tensor_parallel_size: 2"  # each engine is two processes with half of every layer
    two = RECIPE.format(runs=SHARED / "runs", where=", address: auto", ranks=ranks)
    (folder / "two.yaml").write_text(two, encoding="utf-8")
    return folder


def posttrain(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "posttrain.cli", *arguments]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def hosts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    """Each has a folder `runs` and a folder `apart` of its own; the cache is shared."""
    with two_hosts(folder, tmp_path_factory.mktemp("logs"), hidden=["runs", "apart"]) as hosts:
        yield hosts


def test_a_folder_that_is_not_shared_is_named(hosts: TwoHosts):
    code, output = hosts.run(
        posttrain("run", str(SHARED / "two.yaml"), "name=alone"),
        TIMEOUT,
        POSTTRAIN_CACHE=str(SHARED / "apart"),
    )
    assert code == 2, output[-3000:]
    said = output.strip().splitlines()[-1]
    assert said.startswith(f"posttrain: node {hosts.second.address} does not see {SHARED}/apart/"), said
    assert f"needs for the images of dataset scenes.yaml: share {SHARED}/apart/" in said


def test_two_hosts_learn_what_one_learns(folder: Path, hosts: TwoHosts):
    code, output = hosts.run(
        posttrain("run", str(SHARED / "two.yaml")), TIMEOUT, POSTTRAIN_CACHE=str(SHARED / "cache")
    )
    assert code == 0, output[-3000:]
    command = posttrain("run", str(folder / "one.yaml"))
    environment = os.environ | {"POSTTRAIN_CACHE": str(folder / "cache")}
    finished = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    one, two = folder / "one" / "tools", folder / "runs" / "tools"
    for ours, theirs in zip(rows(two / "metrics.jsonl"), rows(one / "metrics.jsonl"), strict=True):
        assert ours["episode/tool_calls"] > 0
        assert ours["update/skipped"] == 0
        for name in ("reward/mean", "episode/tool_calls", "episode/tokens", "loss", "grad_norm", "entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    ours, theirs = (load_file(run / "rl" / "checkpoint-2" / "model.safetensors") for run in (two, one))
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() < 1e-5, name
