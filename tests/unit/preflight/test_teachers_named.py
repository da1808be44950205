"""What `validate` says of a stage that learns from a teacher: its tokens, its images, and its pass rates."""

import json
from typing import Any

import pytest
import yaml


def stage_of(**keys: Any) -> dict[str, Any]:
    task = {"data": "prompts", "rewards": keys.pop("rewards", [])}
    return {"stage": "on_policy_distillation", "max_steps": 1, "tasks": [task]} | keys


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        (
            {"tokens": {"a": 1, "b": 0}},
            "the teacher has other tokens than the model: 'a' is 1 there and 0 here",
        ),
        ({"tokens": {"a": 0, "b": 1, "c": 2}}, "'c' is 2 there and None here"),
        ({"patch_size": 14}, "cuts images otherwise than the model: its patch_size is 14, the model's 16"),
    ],
)
def test_a_teacher_whose_distribution_is_of_other_tokens(look, folder, changes, reason):
    sides = {"model": {}, "teacher": changes}
    for name, own in sides.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
        (folder / name / "model.safetensors").write_text("{}")
        vocabulary = {"model": {"vocab": own.get("tokens", {"a": 0, "b": 1})}, "added_tokens": []}
        (folder / name / "tokenizer.json").write_text(json.dumps(vocabulary))
        sizes = {"patch_size": own.get("patch_size", 16), "merge_size": 2}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(sizes))
    stage = stage_of(teacher={"checkpoint": "./teacher"})
    problems = look(stage, model={"name_or_path": "./model", "family": "qwen3_vl"}).problems
    assert len(problems) == bool(reason)
    assert all(problem.key == "stages[0].teacher.checkpoint" for problem in problems)
    assert all(reason in problem.reason for problem in problems)


@pytest.mark.parametrize("rewards", [[], ["answer_accuracy"]])
def test_pass_rates_of_a_task_without_rewards(look, folder, rewards):
    own = {"name": "own", "data": "prompts", "steps": [{"filter": "pass_rate", "max": 0.9, "samples": 4}]}
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    stage = stage_of(rewards=rewards, teacher={"stage": "base"}, curation="own.yaml")
    problems = [str(problem) for problem in look(stage).problems]
    assert len(problems) == (not rewards)
    assert all("stages[0].curation" in each and "'prompts' has no rewards" in each for each in problems)
    assert all("give the task one" in each for each in problems)
