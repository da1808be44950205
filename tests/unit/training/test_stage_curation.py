"""A stage's curation: which checkpoint plays where the recipe names a stage of the run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.config import ConfigError, Document, ModelConfig
from posttrain.config.curation import build_curation
from posttrain.config.endpoints import CheckpointConfig
from posttrain.curation.outcomes import CurationError
from posttrain.training.stage_curation import with_stages

MODEL = ModelConfig(
    name_or_path="org/name", family="qwen2_5_vl", dtype="float32", max_pixels=4096, video_fps=0.5
)


def recipe(folder: Path, **agent: Any) -> Any:
    task = {"tools": ["image_zoom_in"], "max_turns": 2, "rewards": ["answer_accuracy"]}
    step = {"filter": "rejection_sampling", "endpoint": "agent", "task": task}
    data = {"name": "c", "data": "markers_train", "base_dir": str(folder)}
    return build_curation(Document({**data, "endpoints": {"agent": agent}, "steps": [step]}, "test"))


def work(**checkpoints: Path) -> Any:
    return SimpleNamespace(checkpoints=checkpoints, config=SimpleNamespace(model=MODEL))


def test_an_earlier_stage_plays_as_the_runs_model_unless_told_otherwise(tmp_path: Path) -> None:
    found = with_stages(recipe(tmp_path, stage="rl", max_length=512), work(rl=tmp_path)).endpoints["agent"]
    assert isinstance(found, CheckpointConfig)
    assert (found.checkpoint, found.max_length) == (str(tmp_path), 512)
    assert (found.family, found.dtype, found.max_pixels) == ("qwen2_5_vl", "float32", 4096)
    assert found.as_model.video_fps == 0.5
    own = with_stages(recipe(tmp_path, stage="rl", dtype="bfloat16"), work(rl=tmp_path)).endpoints["agent"]
    assert isinstance(own, CheckpointConfig)
    assert (own.dtype, own.max_pixels) == ("bfloat16", 4096)
    with pytest.raises(CurationError, match="no earlier stage is called 'rl'"):
        with_stages(recipe(tmp_path, stage="rl"), work(sft=tmp_path))


def test_a_model_is_of_a_stage_or_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        recipe(tmp_path, stage="rl", checkpoint="org/name")
    plain = recipe(tmp_path, checkpoint="org/Qwen3-VL-2B")
    assert with_stages(plain, work()) == plain
