"""Which teachers are found, and which are refused at the start."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import ModelConfig, OnPolicyDistillationStage
from posttrain.quickstart.tiny import build_tiny
from posttrain.training.on_policy.frozen_policy import Beside
from posttrain.training.on_policy.learner import Learner
from posttrain.training.on_policy.teacher import TeacherError
from posttrain.training.on_policy.teachers import find_teacher, trained_model
from posttrain.types import Trajectory, text_message


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
    with pytest.raises(TeacherError, match=r"teacher\.checkpoint: the teacher .* has other tokens than"):
        find_teacher(work_in(tmp_path), stage, tiny_checkpoint)


def test_text_only_trains_the_language_model_alone(tiny_checkpoint: Path) -> None:
    model = ModelConfig(family="qwen3_vl", freeze_vision_tower=False)
    teacher = {"stage": "base"}
    assert trained_model(model, stage_of(teacher=teacher), tiny_checkpoint) == model
    alone = trained_model(model, stage_of(teacher=teacher, text_only=True), tiny_checkpoint)
    assert alone.freeze_vision_tower
    assert alone.freeze_merger


def test_texts_teach_the_vision_side_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Not by a gradient, nor by weight decay: every tensor of it is what it was, bit for bit."""
    build_tiny("qwen3_vl", tmp_path / "teacher", seed=7)
    stage = stage_of(
        teacher={"checkpoint": str(tmp_path / "teacher")},
        text_only=True,
        weight_decay=0.1,
        learning_rate=1e-2,
        rollout={"max_length": 400, "max_new_tokens": 64},
    )
    model = ModelConfig(family="qwen3_vl", dtype="float32", freeze_vision_tower=False)
    alone = trained_model(model, stage, tiny_checkpoint)
    beside = Beside(tiny_checkpoint, tmp_path / "teacher")
    learner = Learner(alone, stage, tiny_checkpoint, resume=False, beside=beside)
    rendered = learner.renderer.render(
        [text_message("user", "Where is the red marker?"), text_message("assistant", "I see no picture.")]
    )
    texts = [
        Trajectory(
            *("s", "markers_train", 0, episode),
            token_ids=rendered.token_ids,
            sampled=rendered.supervised,
            versions=[0 if sampled else -1 for sampled in rendered.supervised],
            approximate=[False] * len(rendered.supervised),
        )
        for episode in range(2)
    ]
    for text, logprobs in zip(texts, learner.score(texts), strict=True):
        given = iter(logprobs)
        text.logprobs = [next(given) if sampled else 0.0 for sampled in text.sampled]
    metrics = learner.update(texts, 0)
    assert metrics["divergence/teacher"] > 1e-3
    assert metrics["grad_norm"] > 0
    learner.write_checkpoint(tmp_path / "student")
    before, after = (
        load_file(path / "model.safetensors") for path in (tiny_checkpoint, tmp_path / "student")
    )
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    vision = {name for name in after if ".visual." in name}
    assert vision
    assert not moved & vision
    assert len(moved) > 10
