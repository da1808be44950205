"""RL of a text model whose head is its embeddings, by a file as a user writes it: whole, then adapters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.models.lora import base_of, is_adapter
from tests.integration.whole_runs import run_in
from tests.text_models import build_text

pytestmark = pytest.mark.slow

EVEN = """
from rewards import RewardInput, reward

@reward("even")
def even(x: RewardInput) -> float:
    return sum(token % 2 == 0 for token in x.completion_ids) / max(1, len(x.completion_ids))
"""
QUESTIONS = """
name: questions
description: Which of two numbers is larger?
licence: Apache-2.0
source:
  generator: posttrain.quickstart.text_tasks:write
  params: {kind: larger, split: train, count: 12, seed: 0}
"""
TASK = {"data": "questions.yaml", "rewards": ["even.py:even"]}
STAGE: dict[str, Any] = {
    "stage": "rl",
    "algorithm": {"name": "sapo", "group_size": 4, "mini_batches": 1},
    "prompts_per_step": 2,
    "max_steps": 2,
    "learning_rate": 5e-3,
    "num_workers": 1,
    "rollout": {
        "max_new_tokens": 16,
        "max_length": 128,
        "engine": {"kv_cache_gb": 0.125, "max_num_seqs": 32},
    },
}
WHOLE = STAGE | {"name": "whole", "tasks": [TASK]}
ADAPTERS = STAGE | {
    "name": "adapters",
    "tasks": [TASK | {"name": "again"}],
    "lora": {"rank": 4},
    "rollout": STAGE["rollout"] | {"publish": "merged"},
}
TIMEOUT = 240


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def largest_change(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    assert one.keys() == other.keys()
    return {name: (value - other[name]).abs().max().item() for name, value in one.items()}


def test_whole_weights_and_merged_adapters_of_a_text_model(tmp_path: Path) -> None:
    """Both stages learn, publish whole weights, and end in what transformers and PEFT read."""
    base = build_text(tmp_path / "model", 3, "llama", tied=True)
    (tmp_path / "even.py").write_text(EVEN, encoding="utf-8")
    (tmp_path / "questions.yaml").write_text(QUESTIONS, encoding="utf-8")
    recipe = {
        "name": "learned",
        "model": {"name_or_path": "model", "dtype": "float32"},
        "cluster": {"num_gpus": 0, "num_cpus": 2},
        "stages": [WHOLE, ADAPTERS],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    run = run_in(tmp_path, "recipe.yaml", TIMEOUT) / "learned"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("whole", 1),
        ("whole", 2),
        ("adapters", 1),
        ("adapters", 2),
    ]
    for row in rows:
        assert row["grad_norm"] > 0
        assert row["update/skipped"] == 0
        assert row["logprob_gap/max"] < 1e-4  # of episodes that engines sampled after a publish
        assert row["step"] == 2 or row["publish/proof_gap"] < 1e-4  # what is learned last is not published
    places = json.loads((run / "whole" / "places.json").read_text("utf-8"))
    assert {what: len(where) for what, where in places.items()} == {"learners": 1, "engines": 1}
    whole, adapters = run / "whole" / "checkpoint-2", run / "adapters" / "checkpoint-2"
    learned = largest_change(weights_of(whole), weights_of(base))
    assert "lm_head.weight" not in learned
    assert all(change > 0 for change in learned.values()), learned
    assert is_adapter(adapters)
    assert base_of(adapters) == str(whole)
    model: Any = AutoModelForCausalLM.from_pretrained(whole)
    told = PeftModel.from_pretrained(model, str(adapters)).merge_and_unload().state_dict()
    merged = weights_of(run / "adapters" / "merged" / "checkpoint-2")
    gaps = largest_change(merged, {name: told[name] for name in merged})
    assert max(gaps.values()) < 1e-6
    assert any(change > 1e-6 for change in largest_change(merged, weights_of(whole)).values())
