"""The recipe of mixed tasks at its smallest, as a user runs it: what each task is given and told of."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config import dataset_names, load_dataset_config
from tests.integration.whole_runs import run_in

pytestmark = pytest.mark.slow

SMALLEST = """
base: mixed-tasks
name: smallest
stages:
  tiny_model: {max_steps: 8, global_batch_size: 16, num_workers: 1}
  sft: {max_steps: 60, per_device_batch_size: 8, save_steps: 60, num_workers: 1}
  rl_mixed:
    algorithm: {group_size: 4}
    prompts_per_step: 8
    max_steps: 2
    save_steps: 2
    num_workers: 1
    warmup_ratio: 0.0
  rl_zoom: null
evaluation:
  stages: [rl_mixed]
  tasks:
    zoom_held_out: {num_samples: 8}
    locate_held_out: {num_samples: 8}
    count_held_out: {num_samples: 8}
    lookup_held_out: {num_samples: 8}
"""
TASKS = ("zoom", "locate", "count", "lookup")
TIMEOUT = 600


def test_each_task_has_its_share_its_lengths_and_its_curves(tmp_path: Path, soak: bool) -> None:
    if not soak:
        pytest.skip("the run takes a minute: --soak")
    (tmp_path / "smallest.yaml").write_text(SMALLEST, encoding="utf-8")
    (tmp_path / "datasets_cfg").mkdir()
    for name in (name for name in dataset_names() if name.startswith("markers_")):
        dataset = load_dataset_config(name).model_dump(exclude_unset=True)
        dataset["source"]["params"]["count"] = 24
        (tmp_path / "datasets_cfg" / f"{name}.yaml").write_text(yaml.safe_dump(dataset), encoding="utf-8")
    run = run_in(tmp_path, "smallest.yaml", TIMEOUT) / "smallest"
    for step in (1, 2):
        played = rows(run / "rollouts" / "rl_mixed" / f"step-{step}.jsonl")
        assert Counter(row["task"] for row in played) == dict.fromkeys(TASKS, 2 * 4)
        most = {"zoom": 2048, "locate": 256, "count": 256, "lookup": 256}
        assert all(row["num_tokens"] <= most[row["task"]] for row in played)
        turns = [row for row in played if row["task"] == "count"]
        assert all(row["num_sampled"] <= 4 for row in turns)
    logged = [row for row in rows(run / "metrics.jsonl") if row["stage"] == "rl_mixed"]
    for row in logged:
        assert row["episode/count/turns"] == 1
        for task in TASKS:
            assert 0 <= row[f"advantage/{task}/zero_groups"] <= 2
            assert f"reward/{task}/mean" in row
            assert f"episode/{task}/truncated" in row
    measured = {row["task"]: row["n"] for row in rows(run / "evaluation.jsonl")}
    assert measured == {f"{task}_held_out": 8 for task in TASKS}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Reward by task: mean" in page
    assert "Signal that was lost by task: zero groups" in page


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
