"""Trajectories whose log-probs come from a plain transformers forward, as another engine would give."""

import itertools
from pathlib import Path

import pytest
import torch

from posttrain.config import ModelConfig, RlStage
from posttrain.media.images import save_image
from posttrain.models.load import load_model
from posttrain.quickstart import marker_scenes
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.types import Block, Message, Trajectory, text_message

GROUPS, GROUP_SIZE = 3, 4


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return ModelConfig(family="qwen3_vl", dtype="float32")


@pytest.fixture
def stage() -> RlStage:
    return RlStage.model_validate(
        {
            "stage": "rl",
            "algorithm": {"name": "sapo", "group_size": GROUP_SIZE, "mini_batches": 1},
            "tasks": [{"data": "markers_train", "rewards": [{"name": "answer_accuracy"}]}],
            "prompts_per_step": GROUPS,
            "max_steps": 10,
            "learning_rate": 1e-3,
            "rollout": {"max_length": 400, "max_new_tokens": 64},
        }
    )


@pytest.fixture(scope="session")
def trajectories(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Trajectory]:
    """Three groups of four answers to a scene, of different lengths, with advantages of both signs."""
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    model = load_model(tiny_checkpoint, dtype="float32")
    images = tmp_path_factory.mktemp("images")
    made: list[Trajectory] = []
    for group, scene in enumerate(itertools.islice(marker_scenes.scene_stream("train", 7), GROUPS)):
        image = save_image(scene.draw(), images)
        asked = Message("user", (Block("image", image=image), Block("text", text="Which letter?")))
        for episode, answer in enumerate(("A", "K K K", "H or L, I think", "X" * (group + 1))):
            rendered = renderer.render([asked, text_message("assistant", answer)])
            made.append(
                Trajectory(
                    sample_id=f"s{group}",
                    task="markers_train",
                    group=group,
                    episode=episode,
                    token_ids=rendered.token_ids,
                    sampled=rendered.supervised,
                    images=rendered.images,
                    advantage=(-1.2, 0.3, 0.9, 0.0)[episode],
                )
            )
    for trajectory in made:
        batch = collate([trajectory], renderer)
        with torch.no_grad():
            logits = model(**batch).logits[0].double()
        ids = torch.tensor(trajectory.token_ids)
        logprobs = logits.log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0].tolist()
        trajectory.logprobs = [
            p if s else 0.0 for p, s in zip([0.0, *logprobs], trajectory.sampled, strict=True)
        ]
        trajectory.versions = [0 if s else -1 for s in trajectory.sampled]
        trajectory.approximate = [False] * len(trajectory.sampled)
    return made
