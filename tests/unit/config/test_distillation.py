"""The `distillation` stage: one teacher, and keys that say nothing are refused."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.config import ConfigError, DistillationStage, Document, build_run, load_run
from posttrain.config.arithmetic import batch_arithmetic

CHECKPOINT = {"checkpoint": "Qwen/Qwen3-VL-32B-Instruct"}
ENDPOINT = {"endpoint": {"model": "large"}}


def run_of(**stage: Any) -> dict[str, Any]:
    given = {"stage": "distillation", "max_steps": 2, "data": {"mixture": {"chat_text": 1.0}}}
    return {
        "name": "test",
        "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"},
        "stages": [given | {"teacher": CHECKPOINT} | stage],
    }


def build(**stage: Any) -> DistillationStage:
    found = build_run(Document(run_of(**stage), "run.yaml")).stages[0]
    assert isinstance(found, DistillationStage)
    return found


@pytest.mark.parametrize(
    ("stage", "key", "reason"),
    [
        ({"teacher": {}}, "teacher.checkpoint", "and there is none"),
        ({"teacher": CHECKPOINT | ENDPOINT}, "teacher.endpoint", "these are checkpoint and endpoint"),
        ({"teacher": {"checkpoint": "/nowhere"}}, "teacher.checkpoint", "no directory /nowhere"),
        ({"teacher": {"checkpoint": "gpt2"}}, "teacher.checkpoint", "does not tell its family"),
        ({"teacher": {"stage": "sft"}}, "teacher.stage", "no stage 'sft' before this one"),
        ({"teacher": {"stage": "distillation"}}, "teacher.stage", "before this one"),
        ({"teacher": ENDPOINT, "loss": {"top_k": 4}}, "loss.top_k", "tokens are not the student's"),
        ({"teacher": ENDPOINT, "generation": {"actors": 2}}, "generation.actors", "its own engines"),
        ({"teacher": ENDPOINT, "generation": {"engine": {}}}, "generation.engine", "its own engines"),
        (
            {
                "teacher": {"endpoint": {"model": "m", "request": {"top_p": 0.5}}},
                "generation": {"top_p": 0.9},
            },
            "generation.top_p",
            "has another",
        ),
        ({"loss": {"top_k": 21}}, "loss.top_k", "20"),
        ({"loss": {"top_k_weight": 0.5}}, "loss.top_k_weight", "there is no divergence"),
        ({"loss": {"top_k": 4, "top_k_weight": 0.0}}, "loss.top_k_weight", "greater than 0"),
        ({"generation": {"temperature": 0.0, "samples_per_prompt": 2}}, "generation.samples_per_prompt", ""),
        ({"generation": {"max_new_tokens": 32768}}, "generation.max_new_tokens", "no room for a prompt"),
        ({"num_train_epochs": 1.0}, "max_steps", "either max_steps or num_train_epochs"),
        ({"keep_if": []}, "keep_if", "unknown key"),
    ],
)
def test_what_does_not_fit_is_named(stage: dict[str, Any], key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**stage)
    assert f"stages[0].{key}" in str(caught.value)
    assert reason in str(caught.value)


def test_the_teachers_engines_must_fit_the_machine() -> None:
    run = run_of(generation={"actors": 4}) | {"cluster": {"num_gpus": 2}}
    with pytest.raises(ConfigError, match=r"stages\[0\].generation.actors: 4 take one GPU each"):
        build_run(Document(run, "run.yaml"))


def test_engines_take_whole_samples() -> None:
    stage = build(data={"mixture": {"a": 1.0}, "max_length": 4096}, generation={"actors": 3})
    engines = stage.teacher_engines
    assert (engines.actors, engines.max_length, engines.max_new_tokens) == (3, 4096, 1024)


def test_the_answers_are_counted() -> None:
    config = build_run(Document(run_of(num_prompts=500, generation={"samples_per_prompt": 2}), "run.yaml"))
    rows = dict(batch_arithmetic(config))
    assert rows["distillation: answers"] == "500 prompts × 2 = 1,000, by Qwen/Qwen3-VL-32B-Instruct"


def test_a_teacher_beside_the_recipe_is_found(tmp_path: Path) -> None:
    teacher = tmp_path / "qwen3-vl-teacher"
    teacher.mkdir()
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: a\nmodel: {name_or_path: Qwen/Qwen3-VL-2B-Instruct}\nstages:\n"
        "  - {stage: distillation, max_steps: 1, data: {mixture: {chat_text: 1.0}},"
        " teacher: {checkpoint: qwen3-vl-teacher}}\n"
    )
    stage = load_run(path).stages[0]
    assert isinstance(stage, DistillationStage)
    assert stage.teacher.checkpoint == str(teacher)
