"""Findings of a validation as problems: the choices of a union, and the new names of renamed keys."""

import re

import pytest

from posttrain.config import ConfigError, Document, build_run
from posttrain.config.renamed_keys import RENAMED_KEYS

TASK = {"data": "markers_train", "rewards": ["answer_accuracy"]}
RL = {"stage": "rl", "max_steps": 1, "tasks": [TASK]}


def refusal(**changes: object) -> str:
    run = {"name": "mine", "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}, "stages": [RL]} | changes
    with pytest.raises(ConfigError) as caught:
        build_run(Document(run, "run.yaml"))
    return re.sub(r"\s+", " ", str(caught.value))


def test_a_missing_tag_is_told_the_choices_of_its_union() -> None:
    message = refusal(stages=[{"max_steps": 1}])
    kinds = "tiny_model, sft, distillation, dpo, rl or on_policy_distillation"
    assert f"stages[0].stage: is required → choose {kinds}" in message
    message = refusal(stages=[RL | {"algorithm": {"group_size": 4}}])
    assert "stages[0].algorithm.name: is required → choose sapo, grpo, gspo or cispo" in message


@pytest.mark.parametrize(
    ("new", "stage", "remedy"),
    [
        ("rollout.actors", {"old_key": 4}, "it is called rollout.actors now"),
        ("actors", {"old_key": 4}, "it is called rollout.actors now"),
        ("rollout.actors", {"rollout": {"old_key": 4}}, "it is called actors now"),
        ("tasks.max_turns", {"old_key": 4}, "it is called tasks[].max_turns now"),
        ("model.dtype", {"old_key": 4}, "it is called model.dtype now"),
        ("write it into another file", {"old_key": 4}, "write it into another file"),
    ],
)
def test_a_renamed_key_is_told_its_new_name_and_place(
    monkeypatch: pytest.MonkeyPatch, new: str, stage: dict, remedy: str
) -> None:
    monkeypatch.setitem(RENAMED_KEYS, "old_key", new)
    message = refusal(stages=[RL | stage])
    assert "old_key: unknown key" in message
    assert remedy in message


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"stages": [RL, RL | {"name": "again"}]}, "stages[1].tasks[0]"),
        ({"stages": [RL], "evaluation": {"tasks": [TASK]}}, "evaluation.tasks[0]"),
        ({"stages": [RL], "evaluation": {"tasks": [TASK | {"name": "a"}] * 2}}, "evaluation.tasks[1]"),
    ],
)
def test_two_tasks_of_one_name_are_refused_wherever_they_stand(changes: dict, key: str) -> None:
    message = refusal(**changes)
    assert f"{key}: another task is named" in message
    assert "give one of them a `name` of its own" in message


def test_a_pattern_is_told_by_its_meaning() -> None:
    teacher = {"endpoint": {"model": "m", "base_url": "localhost:8000"}}
    stage = {"stage": "distillation", "data": {"mixture": {"markers_zoom": 1}}, "teacher": teacher}
    assert "should be an address that begins with http://" in refusal(stages=[stage | {"max_steps": 1}])
    assert "up to 64 letters" in refusal(name="a/b")


@pytest.mark.parametrize(
    ("stage", "remedy"),
    [
        (RL | {"micro_batch_size": 2}, "an rl stage takes packed rows of max_batch_tokens"),
        (RL | {"warmup_steps": 2}, "write warmup_ratio, a share of the steps"),
        ({"stage": "tiny_model", "steps": 2}, "it is called max_steps now"),
        ({"stage": "tiny_model", "batch_size": 2}, "it is called global_batch_size now"),
    ],
)
def test_the_keys_of_earlier_versions(stage: dict, remedy: str) -> None:
    assert remedy in refusal(stages=[stage])


@pytest.mark.parametrize(
    ("task", "key", "remedy"),
    [
        ({"max_new_tokens": 65}, "tasks[1].max_new_tokens", "lower it, or raise rollout.max_new_tokens"),
        ({"max_length": 300}, "tasks[1].max_length", "lower it, or raise rollout.max_length"),
        ({"max_length": 64}, "tasks[1].max_length", "set max_new_tokens lower, or raise max_length"),
        ({"max_new_tokens": 40, "max_length": 40}, "tasks[1].max_new_tokens", "raise max_length"),
    ],
)
def test_lengths_of_a_task_stay_within_the_rollout(task: dict, key: str, remedy: str) -> None:
    rollout = {"max_new_tokens": 64, "max_length": 256}
    other = TASK | {"name": "other"}
    both = [TASK | {"ratio": 0.5}, other | {"ratio": 0.5} | task]
    message = refusal(stages=[RL | {"tasks": both, "rollout": rollout}])
    assert f"stages[0].{key}" in message
    assert remedy in message
    evaluation = {"tasks": [TASK | {"name": "first"}, other | task], "rollout": rollout}
    message = refusal(stages=[RL], evaluation=evaluation)
    assert f"evaluation.{key}" in message
    assert remedy in message


def test_rewards_of_an_environment_need_one() -> None:
    task = {"data": "rows", "rewards": ["answer_accuracy", "environment.won"]}
    message = refusal(stages=[RL | {"tasks": [task]}])
    assert "'environment.won' is of an environment, and the task has none" in message
    assert "name the `environment`" in message
