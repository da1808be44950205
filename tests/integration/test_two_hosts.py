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
      engine: {{kv_cache_gb: 0.25, max_num_seqs: 32}}
"""
SCENES = """
name: scenes
description: Scenes and questions.
licence: Apache-2.0
source: {generator: marker_scenes, params: {kind: question, split: train, count: 16, seed: 0}}
"""
TIMEOUT = 400
#: Seen: 2e-6. A run stops at 1e-4.
TOLERANCE = 1e-5


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
    one = RECIPE.format(runs=folder / "one", where=", num_cpus: 2")
    (folder / "one.yaml").write_text(one, encoding="utf-8")
    two = RECIPE.format(runs=SHARED / "runs", where=", address: auto")
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
    assert f"needs for the images and videos of dataset scenes.yaml: share {SHARED}/apart/" in said


@pytest.fixture(scope="module")
def one(folder: Path, hosts: TwoHosts) -> Path:
    """The run on one host, as it is without a cluster around it."""
    command = posttrain("run", str(folder / "one.yaml"))
    environment = os.environ | {"POSTTRAIN_CACHE": str(folder / "cache")}
    finished = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder / "one" / "tools"


def said(run: Path) -> list[tuple[int, int, int, list[str]]]:
    """The texts of all episodes, and how many tokens were sampled."""
    found = []
    for path in sorted((run / "rollouts" / "rl").glob("*.jsonl")):
        for row in rows(path):
            texts = [block.get("text", "") for turn in row["messages"] for block in turn["content"]]
            found.append((row["step"], row["group"], row["episode"], [*texts, str(row["num_sampled"])]))
    return sorted(found)


def compare(two: Path, one: Path, start: Path) -> None:
    """Compare what was played and learned on two hosts with what one did, from the weights that both had."""
    for ours, theirs in zip(rows(two / "metrics.jsonl"), rows(one / "metrics.jsonl"), strict=True):
        assert ours["episode/tool_calls"] > 0
        assert ours["update/skipped"] == 0
        for name in ("reward/mean", "episode/tool_calls", "episode/tokens", "loss", "grad_norm", "entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    folders = (run / "rl" / "checkpoint-2" for run in (two, one))
    ours, theirs, before = (load_file(each / "model.safetensors") for each in (*folders, start))
    for name, value in theirs.items():
        # An optimiser that divides by the gradient's size makes much of the rounding of small ones.
        assert (ours[name] - value).norm() <= 1e-3 * (value - before[name]).norm(), name


def test_two_hosts_learn_what_one_learns(folder: Path, hosts: TwoHosts, one: Path):
    code, output = hosts.run(
        posttrain("run", str(SHARED / "two.yaml")), TIMEOUT, POSTTRAIN_CACHE=str(SHARED / "cache")
    )
    assert code == 0, output[-3000:]
    compare(folder / "runs" / "tools", one, folder / "model")


def test_engines_of_two_ranks_learn_what_one_host_learns(folder: Path, hosts: TwoHosts, one: Path):
    """On each host an engine of two ranks, all four of which get their weights from the first host."""
    command = posttrain("run", str(SHARED / "two.yaml"), "name=ranks")
    command.append("stages.rl.rollout.engine.tensor_parallel_size=2")
    code, output = hosts.run(command, TIMEOUT, POSTTRAIN_CACHE=str(SHARED / "cache"))
    assert code == 0, output[-3000:]
    run = folder / "runs" / "ranks"
    places = json.loads((run / "rl" / "places.json").read_text("utf-8"))
    assert {*places["engines"]} == {*places["learners"]} == {hosts.first.address, hosts.second.address}
    metrics = rows(run / "metrics.jsonl")
    assert all(step["logprob_gap/max"] < TOLERANCE and not step["publish/repeated"] for step in metrics)
    assert metrics[0]["publish/proof_gap"] < TOLERANCE  # of the first weights and those of step 1
    # Halves of a sum round otherwise than the whole, by less than lies between a token and the next one.
    assert said(run) == said(one)
    compare(run, one, folder / "model")
