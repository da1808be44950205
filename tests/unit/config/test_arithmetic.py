"""The sums that `posttrain validate` prints."""

import pytest

from posttrain.config import ConfigError, RunConfig, load_run
from posttrain.config.arithmetic import batch_arithmetic


def test_batches_of_the_quickstart() -> None:
    settings = ["prompts_per_step=16", "max_steps=60", "num_workers=1"]
    rows = dict(batch_arithmetic(load_run("quickstart", [f"stages.rl.{setting}" for setting in settings])))
    assert rows["rl: episodes a step"] == "16 prompts × 8 = 128"
    told = "128 / 2 mini-batches = 64; 64 a learner process, in rows of up to 2,048 tokens"
    assert rows["rl: episodes an update"] == told
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


def test_staleness_is_told_in_versions_and_episodes() -> None:
    in_turns = dict(batch_arithmetic(load_run("quickstart")))
    assert in_turns["rl: episodes in flight"] == (
        "at most 1 steps × 128 = 128; engines and learners take turns (rollout.max_staleness = 0)"
    )
    ahead = dict(batch_arithmetic(load_run("quickstart", ["stages.rl.rollout.max_staleness=2"])))
    assert ahead["rl: episodes in flight"] == (
        "at most 3 steps × 128 = 384; a token is up to 2 versions older than the weights that learn from it"
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["rollout.max_staleness=40"], "40 is no bound in a stage of 40 steps"),
        (["rollout.on_publish=keep"], "keep changes nothing at max_staleness = 0"),
        (["rollout.publish=merged"], "there are no adapters to publish"),
    ],
)
def test_settings_of_pacing_without_effect_are_refused(settings: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_run("quickstart", [f"stages.rl.{setting}" for setting in settings])
    load_run("quickstart", ["stages.rl.rollout.max_staleness=39", "stages.rl.rollout.on_publish=keep"])
