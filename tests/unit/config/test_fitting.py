"""What does not fit a GPU, and the ways out: `posttrain validate` on 80 and on 141 GB."""

import re
from typing import Any

import pytest

from posttrain.config import ModelConfig, RunConfig, load_run
from posttrain.config.fitting import Misfit, learner_misfit, memory_rows, model_load, stage_misfits
from posttrain.config.memory import card_memory
from posttrain.config.shapes import KNOWN

H100, H200 = card_memory(80), card_memory(141)
DATA = {"mixture": {"a": 1.0}, "max_length": 32768, "packing": True}
SFT = {"stage": "sft", "max_steps": 10, "data": DATA}
RL = {"stage": "rl", "max_steps": 10, "tasks": [{"data": "a", "rewards": ["answer_accuracy"]}]}


def misfits(*stages: dict[str, Any], card: float, gpus: int = 8, model: str = "Qwen3-VL-8B") -> list[Misfit]:
    config = {"name_or_path": f"Qwen/{model}-Instruct"}
    run = RunConfig.model_validate({"name": "r", "model": config, "stages": list(stages)}).on(gpus)
    load = model_load(run.model, KNOWN[model.lower()])
    return [misfit for stage in run.stages for misfit in stage_misfits(load, stage, card, gpus)]


@pytest.mark.parametrize(
    ("recipe", "card", "too_large"),
    [
        ("qwen3-vl-8b", H200, set()),
        ("qwen3-vl-8b-general-rl", H200, set()),
        ("qwen3-vl-8b", H100, {"sft"}),
        ("qwen2.5-vl-7b", H100, set()),
        ("qwen2-vl-7b", H100, set()),
    ],
)
def test_shipped_recipes_fit_what_their_headers_say(recipe: str, card: float, too_large: set[str]) -> None:
    run = load_run(recipe).on(8)
    name = str(run.model.name_or_path).rpartition("/")[2].lower().removesuffix("-instruct")
    model = model_load(run.model, KNOWN[name])
    found = {stage.name for stage in run.stages if stage_misfits(model, stage, card, 8)}
    assert found == too_large


def test_the_old_rl_learner_cannot_fit_80_gb_and_is_told_to_shard() -> None:
    """Four replicas: 16 bytes of each of 8.35 B parameters on every GPU."""
    [misfit] = misfits(RL | {"num_workers": 4, "rollout": {"actors": 4}}, card=H100)
    assert misfit.certain
    assert "weights, moments and gradients 124" in misfit.reason
    assert misfit.remedy.startswith("sharding: fsdp2 (")


def test_a_row_too_long_for_the_card_may_fit_in_practice_and_is_not_refused() -> None:
    stage = SFT | {"num_workers": 8, "sharding": "fsdp2", "data": DATA | {"max_length": 262144}}
    [misfit] = misfits(stage, card=H200)
    assert not misfit.certain
    assert "activations of 262,144 tokens" in misfit.reason


def test_ways_out_are_the_cheapest_first_and_each_fits() -> None:
    stage = SFT | {"num_workers": 4, "gradient_checkpointing": False}
    [misfit] = misfits(stage, card=H100, gpus=8)
    ways = misfit.remedy.split("; or ")
    assert [re.sub(r" \(.*", "", way) for way in ways] == [
        "sharding: fsdp2 and gradient_checkpointing: true",
        "sharding: fsdp2 and data.max_length: 4,096",
        "gradient_checkpointing: true and lora: {rank: 16}",
    ]
    sizes = [float(size) for size in re.findall(r"\(([\d.]+) GiB\)", misfit.remedy)]
    assert len(sizes) == 3
    assert max(sizes) * 2**30 < H100


def test_fewer_samples_at_once_are_accumulated() -> None:
    stage = SFT | {
        "num_workers": 2,
        "sharding": "fsdp2",
        "per_device_batch_size": 16,
        "gradient_checkpointing": False,
        "data": {"mixture": {"a": 1.0}, "max_length": 8192},
    }
    [misfit] = misfits(stage, card=H100, model="Qwen3-VL-2B", gpus=2)
    assert misfit.remedy.startswith("per_device_batch_size: 2 (")


def test_no_way_out_takes_more_gpus_than_there_are() -> None:
    stage = RL | {"num_workers": 2, "sharding": "fsdp2", "rollout": {"max_length": 32768}}
    for gpus, more in ((3, False), (8, True)):
        [misfit] = misfits(stage, card=H100, gpus=gpus)
        assert ("num_workers" in misfit.remedy) == more


def test_an_engine_that_cannot_hold_its_weights_is_refused() -> None:
    engine = {"gpu_memory_utilization": 0.2}
    found = misfits(RL | {"rollout": {"engine": engine}}, card=H100, model="Qwen3-VL-8B")
    engines = [misfit for misfit in found if misfit.key == ("rollout", "engine")]
    assert [misfit.certain for misfit in engines] == [True]
    assert "raise gpu_memory_utilization to 0." in engines[0].remedy


def test_the_default_of_checkpointing_follows_the_device() -> None:
    """On a GPU the README's way of training fits where it did not; on a CPU nothing is computed twice."""
    model = model_load(ModelConfig(name_or_path="Qwen/Qwen3-VL-2B-Instruct"), KNOWN["qwen3-vl-2b"])
    base = {"name": "r", "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}}
    for setting, on_gpu, on_cpu in ((None, True, False), (True, True, True), (False, False, False)):
        stage = SFT | ({} if setting is None else {"gradient_checkpointing": setting})
        run = RunConfig.model_validate(base | {"stages": [stage]})
        [gpu], [cpu] = run.on(1).stages, run.on(0).stages
        assert (gpu.gradient_checkpointing, cpu.gradient_checkpointing) == (on_gpu, on_cpu)  # type: ignore[union-attr]
        assert (learner_misfit(model, gpu, H100, 1) is None) == on_gpu


def test_every_process_of_a_run_has_its_row() -> None:
    rows = dict(memory_rows(load_run("qwen3-vl-8b").on(8)))
    assert rows["model"] == "8.8 B parameters, 8.4 B of them trained, bfloat16"
    assert "weights, moments and gradients 31.1 GiB" in rows["rl: each of 4 learner processes"]
    assert "16.3 GiB of them weights; 1.0 GiB more for logits of given" in rows["rl: each of 4 engines"]
    assert memory_rows(load_run("quickstart")) == []


def test_engines_hold_several_versions_of_adapters() -> None:
    stage = RL | {"lora": {"rank": 16}, "rollout": {"max_staleness": 2}}

    def engines(gpus: int, **rollout: str) -> str:
        stages = [stage | {"rollout": {"max_staleness": 2, **rollout}}]
        model = {"name_or_path": "Qwen/Qwen3-VL-8B-Instruct"}
        run = RunConfig.model_validate({"name": "r", "model": model, "stages": stages})
        return dict(memory_rows(run.on(gpus)))["rl: each of 1 engines"]

    assert engines(8).endswith("given tokens; 333 MiB more for up to 4 versions of the adapters")
    assert engines(8, publish="merged").endswith("given tokens")
    assert engines(0).endswith("given tokens")  # merged on a CPU
    assert "versions of the adapters" in engines(0, publish="adapter")


def test_logits_of_given_tokens_have_room_beside_what_the_engine_takes() -> None:
    def found(share: float) -> list[Misfit]:
        engine = {"gpu_memory_utilization": share}
        return [each for each in misfits(RL | {"rollout": {"engine": engine}}, card=H200) if each.key]

    assert found(0.9) == []
    [misfit] = found(0.999)
    assert (misfit.key, misfit.certain) == (("rollout", "engine", "gpu_memory_utilization"), False)
    assert "1.0 GiB for logits of tokens that it scores or reads; 142 MiB are left" in misfit.reason
    assert found(float(misfit.remedy.removeprefix("lower it to "))) == []
