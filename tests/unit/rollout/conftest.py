"""A renderer, scenes and a scripted engine for the rollout's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain.media.images import save_image
from posttrain.plugins import resolve
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import TaskEnvironments
from posttrain.types import Block, Message, Sample
from tools_env.environment import ToolEnvironment
from tools_env.zoom import ImageZoomIn


@pytest.fixture(scope="session")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")


@pytest.fixture
def engine(tiny_checkpoint: Path, renderer: Renderer) -> Any:
    make: Any = resolve(
        "scripted_engine.py:ScriptedEngine", "posttrain.engines", object, Path(__file__).parent
    )
    return make(tiny_checkpoint, renderer.end_token_id, renderer.banned_token_ids)


@pytest.fixture
def make_sample(tmp_path: Path) -> Callable[[int], Sample]:
    def make(index: int) -> Sample:
        scene = Image.effect_noise((128, 128), 60 + index).convert("RGB")
        question = Block("text", text="Which letter is on the red marker?")
        message = Message("user", (Block("image", image=save_image(scene, tmp_path)), question))
        return Sample(f"scene-{index}", (message,), ground_truth="K")

    return make


@pytest.fixture
def zoom_task(tmp_path: Path) -> dict[str, TaskEnvironments]:
    zoom = ImageZoomIn()
    return {"markers": TaskEnvironments([zoom.spec], lambda: ToolEnvironment([zoom], 3, tmp_path))}
