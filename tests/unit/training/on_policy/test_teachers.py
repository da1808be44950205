"""Which teachers are found, and which are refused at the start."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.config import ModelConfig, OnPolicyDistillationStage
from posttrain.training.on_policy.teacher import TeacherError
from posttrain.training.on_policy.teachers import find_teacher, trained_model


def stage_of(**settings: Any) -> OnPolicyDistillationStage:
    given = {"stage": "on_policy_distillation", "max_steps": 1, "tasks": [{"data": "markers_train"}]}
    return OnPolicyDistillationStage.model_validate(given | settings)


def work_in(folder: Path, **checkpoints: Path) -> Any:
    return SimpleNamespace(
        checkpoints=checkpoints,
        config=SimpleNamespace(model=ModelConfig(family="qwen3_vl")),
        run=SimpleNamespace(path=folder, newest_checkpoint=lambda name: None),
    )


def test_a_checkpoint_and_a_stage_are_found(tiny_checkpoint: Path, tmp_path: Path) -> None:
    named = stage_of(teacher={"checkpoint": str(tiny_checkpoint)})
    assert find_teacher(work_in(tmp_path), named, tiny_checkpoint) == tiny_checkpoint
    earlier = stage_of(teacher={"stage": "sft"})
    assert find_teacher(work_in(tmp_path, sft=tiny_checkpoint), earlier, tiny_checkpoint) == tiny_checkpoint


def test_other_tokens_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-qwen3-vl"
    shutil.copytree(tiny_checkpoint, other)
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))
    stage = stage_of(teacher={"checkpoint": str(other)})
    with pytest.raises(TeacherError, match="has other tokens than the student"):
        find_teacher(work_in(tmp_path), stage, tiny_checkpoint)


def test_text_only_trains_the_language_model_alone(tiny_checkpoint: Path) -> None:
    model = ModelConfig(family="qwen3_vl", freeze_vision_tower=False)
    teacher = {"stage": "base"}
    assert trained_model(model, stage_of(teacher=teacher), tiny_checkpoint) == model
    alone = trained_model(model, stage_of(teacher=teacher, text_only=True), tiny_checkpoint)
    assert alone.freeze_vision_tower
    assert alone.freeze_merger
