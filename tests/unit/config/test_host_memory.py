"""What processes of a rollout take of the host's memory, by hand, and what is said where it is too little."""

from typing import Any

import pytest

from posttrain.config import RunConfig
from posttrain.config.host_fitting import host_misfits, host_rows
from posttrain.config.host_memory import EPISODE, GIB, SHARE_OF_PIXELS, TOKEN, Host, host_processes
from posttrain.config.memory import ModelLoad
from posttrain.config.shapes import KNOWN

TASK = {"data": "a", "rewards": ["answer_accuracy"], "tools": ["image_zoom_in"], "max_turns": 6}
#: 64 prompts of 16 episodes, of six images with 4 megapixels: 3,907 tokens of 32 × 32 pixels each.
RL: dict[str, Any] = {
    "stage": "rl",
    "max_steps": 10,
    "tasks": [TASK],
    "prompts_per_step": 64,
    "rollout": {"actors": 2, "max_length": 32768},
}
PIXELS = 4_000_000
IMAGE = 3907 * 32 * 32 * 3
LARGE = Host(2048.0 * GIB, 1024.0 * GIB)


def run(stage: dict[str, Any], gpus: int = 8, **model: Any) -> RunConfig:
    config = {"name_or_path": "Qwen/Qwen3-VL-8B-Instruct"} | (model or {"max_pixels": PIXELS})
    return RunConfig.model_validate({"name": "r", "model": config, "stages": [stage]}).on(gpus)


def parts(config: RunConfig, host: Host) -> dict[str, dict[str, float]]:
    return {each.name: dict(each.parts) for each in host_processes(config, config.stages[0], None, host)}


def test_pixels_are_those_of_the_open_sequences_within_their_room() -> None:
    """An engine has twice as many sequences open as it samples at once, and no more than its episodes."""
    for more, sequences in (({}, 512), ({"max_num_seqs": 16}, 32), ({"max_num_seqs": 1024}, 512)):
        stage = RL | {"rollout": RL["rollout"] | {"engine": more}}
        assert parts(run(stage), LARGE)["engine"]["pixels"] == sequences * 6 * IMAGE
    room = SHARE_OF_PIXELS * 64 * GIB / 2
    assert parts(run(RL), Host(64.0 * GIB))["engine"]["pixels"] == room
    stage = RL | {"rollout": RL["rollout"] | {"engine": {"image_memory_gb": 3}}}
    assert parts(run(stage), Host(64.0 * GIB))["engine"]["pixels"] == 3 * GIB
    stage["rollout"]["engine"]["image_memory_gb"] = 0.001  # the longest turn is granted all the same
    assert parts(run(stage), LARGE)["engine"]["pixels"] == 32768 * 3072


def test_images_are_bounded_by_the_length_of_an_episode_and_by_the_family() -> None:
    long = run(RL, max_pixels=None)
    assert parts(long, LARGE)["engine"]["pixels"] == 512 * 32768 * 32 * 32 * 3
    older = run(RL, name_or_path="Qwen/Qwen2.5-VL-7B-Instruct")
    assert parts(older, LARGE)["engine"]["pixels"] == 512 * 32768 * 28 * 28 * 3
    plain = RL | {"tasks": [{"data": "a", "rewards": ["answer_accuracy"]}]}
    text = run(plain, family="text")
    assert "pixels" not in parts(text, LARGE)["engine"]
    assert "pixels" not in parts(text, LARGE)["learner"]


def test_tokens_grow_with_the_steps_in_flight() -> None:
    episode = 32768 * TOKEN + EPISODE
    for staleness in (0, 2):
        stage = RL | {"rollout": RL["rollout"] | {"max_staleness": staleness}}
        found = parts(run(stage), LARGE)
        assert next(iter(found["the run itself"].values())) == (2 + staleness) * 1024 * episode
        assert found["engine"]["tokens"] == 512 * episode


def test_a_stage_without_episodes_says_nothing() -> None:
    sft = {"stage": "sft", "max_steps": 10, "data": {"mixture": {"a": 1.0}}}
    config = run(sft)
    assert host_rows(config, LARGE) == []
    assert list(host_misfits(config, config.stages[0], Host(1.0))) == []


def test_rows_show_the_arithmetic() -> None:
    rows = dict(host_rows(run(RL), LARGE))
    assert "512 open sequences × 23,442 image tokens × 3,072 bytes = 34.3 GiB" in rows["rl: host memory"]
    assert rows["rl: each of 2 engines"].startswith("4")
    assert "pixels 34.3 GiB" in rows["rl: each of 2 engines"]


def test_what_does_not_fit_is_told_with_a_way_out() -> None:
    config = run(RL)
    small, tiny = Host(64.0 * GIB, 64.0 * GIB), Host(8.0 * GIB, 64.0 * GIB)
    store = "cluster", "object_store_mb"
    found = {misfit.key: misfit for misfit in host_misfits(config, config.stages[0], small)}
    assert found.keys() == {("rollout", "engine"), store}
    assert "pixels of 59 sequences" in found["rollout", "engine"].reason
    assert "image_memory_gb: 18" in found["rollout", "engine"].remedy
    [first, *_] = host_misfits(config, config.stages[0], tiny)
    assert first.certain
    assert "there are 8.0 GiB" in first.reason
    # What the remedies say is enough.
    sent = int(found[store].remedy.removeprefix("raise it to "))
    engine = {"engine": {"image_memory_gb": 18}}
    mended = RL | {"rollout": RL["rollout"] | engine}
    run_of = {"name": "r", "model": config.model, "stages": [mended], "cluster": {"object_store_mb": sent}}
    settled = RunConfig.model_validate(run_of).on(8)
    assert [
        misfit.key for misfit in host_misfits(settled, settled.stages[0], Host(128.0 * GIB, 64.0 * GIB))
    ] == []


def test_shared_memory_must_hold_the_object_store() -> None:
    config = run(RL | {"prompts_per_step": 2})
    [misfit] = host_misfits(config, config.stages[0], Host(2048.0 * GIB, 2.0**20))
    assert (misfit.key, misfit.certain) == (("cluster", "object_store_mb"), False)
    assert "1 MiB that are free in /dev/shm" in misfit.reason


@pytest.mark.parametrize("gpus", [0, 8])
def test_a_cpus_models_are_in_the_hosts_memory(gpus: int) -> None:
    config = run(RL | {"rollout": RL["rollout"] | {"actors": 1}}, gpus)
    found = parts(config, LARGE)
    assert ("patches" in found["engine"]) == (gpus == 0)
    assert ("weights and cache" in found["engine"]) == (gpus == 0)


def test_a_cpus_engine_holds_logits_of_what_it_scores_on_every_rank() -> None:
    sizes: dict[int, float] = {}
    for ranks in (1, 2):
        engine = {"tensor_parallel_size": ranks, "kv_cache_gb": 0.5}
        config = run(RL | {"rollout": RL["rollout"] | {"engine": engine}}, gpus=0)
        model = ModelLoad(KNOWN["qwen3-vl-8b"], 4)
        processes = host_processes(config, config.stages[0], model, LARGE)
        held = next(each.parts for each in processes if each.name == "engine")
        assert held["logits"] == ranks * 415 * 17 * 151_936
        assert held["process"] == (1, 3)[ranks - 1] * GIB  # the ranks' own beside the engine's
        sizes[ranks] = held["weights and cache"]
    assert sizes[2] - sizes[1] == 0.5 * GIB
