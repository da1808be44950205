"""The sums that `posttrain validate` prints."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from posttrain.config import ModelConfig, RunConfig, load_run
from posttrain.config.arithmetic import (
    KNOWN_SIZES,
    batch_arithmetic,
    count_parameters,
    memory_estimate,
    model_size,
)

#: What transformers' config of Qwen3-VL-8B says of the sizes.
QWEN3_VL_8B = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": False,
    "text_config": {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
        "vocab_size": 151936,
    },
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}


def test_batches_of_the_quickstart() -> None:
    settings = ["prompts_per_step=16", "max_steps=60", "per_device_batch_size=32", "num_workers=1"]
    rows = dict(batch_arithmetic(load_run("quickstart", [f"stages.rl.{setting}" for setting in settings])))
    assert rows["rl: episodes a step"] == "16 prompts × 8 = 128"
    assert rows["rl: episodes an update"] == "128 / 2 mini-batches = 64; 64 a learner process, in 2 of 32"
    assert rows["rl: updates"] == "60 steps × 2 = 120"
    assert rows["rl: episodes"] == "60 steps × 128 = 7,680"


def test_batches_by_epochs() -> None:
    config = load_run("qwen3-vl-8b")
    rows = dict(batch_arithmetic(config))
    assert rows["sft: samples a step"] == "16 × 1 accumulated × 8 workers = 128"
    assert rows["sft: samples"] == "2 × the data"
    assert rows["rl: prompts a step"] == "vstar_train 32, geometry 32"
    assert config.stages[0].steps_for(1000) == 16  # type: ignore[union-attr]


def test_packing_and_the_curriculum_are_told() -> None:
    curriculum = {"short_length": 32768, "short_phase": 0.5, "long_share": 0.5}
    data = {"mixture": {"a": 1.0}, "max_length": 262144, "packing": True, "curriculum": curriculum}
    stages = [{"stage": "sft", "max_steps": 10, "data": data}]
    model = {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}
    rows = dict(batch_arithmetic(RunConfig.model_validate({"name": "r", "model": model, "stages": stages})))
    assert rows["sft: packing"].endswith("in rows of up to 262,144 tokens, in the first phase 32,768")
    assert rows["sft: curriculum"] == (
        "50% of the steps up to 32,768 tokens, then 50% of the samples longer, up to 262,144"
    )


def test_memory_of_the_8b_recipe() -> None:
    rows = dict(memory_estimate(load_run("qwen3-vl-8b")))
    # The tower in bfloat16, the rest four times in float32.
    assert (
        rows["rl: each of 4 learner processes"]
        == f"{(2 * 0.58 + 4 * 4 * 8.22) * 1e9 / 2**30:.1f} GiB and activations"
    )
    assert rows["rl: each of 4 engines"] == "16.4 GiB and the cache"
    # Sharded, an eighth each.
    assert (
        rows["sft: each of 8 learner processes"]
        == f"{(2 * 0.58 + 4 * 4 * 8.22) * 1e9 / 8 / 2**30:.1f} GiB and activations"
    )


@pytest.mark.parametrize(
    ("optimizer", "held"), [("adamw", 16), ("muon", 12), ("adamw_8bit", 10.03), ("adamw_bf16", 14)]
)
def test_memory_by_optimizer(optimizer: str, held: float) -> None:
    config = load_run("qwen3-vl-8b", [f"stages.rl.optimizer={optimizer}"])
    assert dict(memory_estimate(config))["rl: each of 4 learner processes"] == (
        f"{(2 * 0.58 + held * 8.22) * 1e9 / 2**30:.1f} GiB and activations"
    )


def test_counting_agrees_with_the_published_size() -> None:
    total, tower = count_parameters(QWEN3_VL_8B)
    assert total == pytest.approx(KNOWN_SIZES["qwen3-vl-8b"][0] * 1e9, rel=0.01)
    assert tower < total


def test_counting_agrees_with_a_real_checkpoint(tiny_checkpoint: Path) -> None:
    with safe_open(tiny_checkpoint / "model.safetensors", "pt") as weights:
        real = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    sizes = model_size(ModelConfig(name_or_path=str(tiny_checkpoint)))
    assert sizes is not None
    assert sizes[0] == pytest.approx(real, rel=0.1)
    assert json.loads((tiny_checkpoint / "config.json").read_text())["model_type"] == "qwen3_vl"


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-VL-30B-A3B-Thinking", 31.1),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.3),
        ("Qwen/Qwen3-VL-99B", None),
    ],
)
def test_sizes_by_name(name: str, billions: float | None) -> None:
    sizes = model_size(ModelConfig(name_or_path=name))
    assert (sizes[0] / 1e9 if sizes else None) == billions


def test_a_model_of_unknown_size_has_no_estimate() -> None:
    assert memory_estimate(load_run("quickstart")) == []
