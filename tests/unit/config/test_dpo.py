"""What the preference stage and the adapters accept."""

import pytest

from posttrain.config import ConfigError, Document, DpoStage, build_run
from posttrain.config.arithmetic import batch_arithmetic


def run_of(**stage: object) -> dict:
    return {
        "name": "test",
        "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"},
        "stages": [{"stage": "dpo", "data": {"mixture": {"pairs": 1.0}}} | stage],
    }


def build(**stage: object) -> DpoStage:
    found = build_run(Document(run_of(**stage), "run.yaml")).stages[0]
    assert isinstance(found, DpoStage)
    return found


def test_each_pair_is_seen_once_unless_told_otherwise():
    assert build(per_device_batch_size=4, gradient_accumulation_steps=2).steps_for(rows=80) == 10
    assert build(num_train_epochs=2.0).steps_for(rows=10) == 20
    assert build(max_steps=3).steps_for(rows=10) == 3
    config = build_run(Document(run_of(), "run.yaml"))
    assert ("dpo: samples", "1 × the data") in batch_arithmetic(config)


@pytest.mark.parametrize(
    ("stage", "key", "reason"),
    [
        ({"max_steps": 3, "num_train_epochs": 1.0}, "max_steps", "either max_steps or num_train_epochs"),
        ({"eval_steps": 3}, "eval_steps", "no held-out rows"),
        ({"loss_type": "hinge"}, "loss_type", "sigmoid"),
        ({"lora": {"rank": 0}}, "lora.rank", "greater than or equal to 1"),
        ({"lora": {"r": 8}}, "lora.r", "unknown key"),
        ({"lora": {"target_modules": []}}, "lora.target_modules", ""),
        ({"data": {"mixture": {"a": 0.5}}}, "data.mixture", "sum to 0.5"),
        ({"global_batch_size": 3}, "global_batch_size", "is 1, not 3"),
        ({"sharding": "fsdp2"}, "sharding", "one worker shares nothing"),
        (
            {"sharding": "fsdp2", "num_workers": 2, "optimizer": "muon"},
            "sharding",
            "muon needs whole matrices",
        ),
        (
            {"sharding": "fsdp2", "num_workers": 2, "lora": {"quantization": "nf4"}},
            "sharding",
            "bitsandbytes",
        ),
        ({"optimizer": "adamw_bf16", "lora": {}}, "optimizer", "adapters are held in float32"),
        ({"lora": {"quantization": "nf3"}}, "lora.quantization", "nf4"),
    ],
)
def test_what_does_not_fit_is_named(stage, key, reason):
    with pytest.raises(ConfigError) as caught:
        build(**stage)
    assert f"stages[0].{key}" in str(caught.value)
    assert reason in str(caught.value)


def test_weights_of_a_float32_model_are_not_held_in_bfloat16():
    stage = run_of(optimizer="adamw_bf16")
    assert not build(optimizer="adamw_bf16").float32_masters
    stage["model"]["dtype"] = "float32"
    with pytest.raises(ConfigError, match=r"stages\[0\]\.optimizer.*model\.dtype is float32"):
        build_run(Document(stage, "run.yaml"))
