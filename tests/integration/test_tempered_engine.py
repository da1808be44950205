"""At another temperature than 1 engine and learner hold the same policy, and publishes are proved as ever."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import ModelConfig, RlStage
from posttrain.inference.engine import EngineUse, ScoreRequest, stable_seed
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeJob, Limits, TaskEnvironments
from posttrain.training.on_policy.agreement import PolicyMismatch
from posttrain.training.on_policy.learner import Learner
from posttrain.types import Sample
from tests.at_work import play
from tests.integration.conftest import MAX_LENGTH
from tests.integration.engine_truth import TOLERANCE, logprobs_of, model_at, requests_of
from tools_env.environment import ToolEnvironment

TEMPERATURE = 0.6


@pytest.fixture
def stage() -> RlStage:
    return RlStage.model_validate(
        {
            "stage": "rl",
            "algorithm": {"name": "grpo", "group_size": 2, "mini_batches": 1},
            "tasks": [{"data": "markers_train", "rewards": ["answer_accuracy"]}],
            "prompts_per_step": 2,
            "max_steps": 2,
            "rollout": {"max_length": MAX_LENGTH, "max_new_tokens": 24, "temperature": TEMPERATURE},
        }
    )


def test_the_learner_holds_what_a_tempered_engine_samples_from(
    start_engine: Callable[..., Any],
    talker: Path,
    renderer: Renderer,
    samples: Sequence[Sample],
    stage: RlStage,
    tmp_path: Path,
) -> None:
    engine = start_engine(talker, use=EngineUse(tempered=True))
    tasks = {"markers": TaskEnvironments([], lambda: ToolEnvironment([], 1, tmp_path))}
    jobs = [
        EpisodeJob(sample, "markers", group, index, stable_seed(7, group, index))
        for group, sample in enumerate(samples[:2])
        for index in range(2)
    ]
    limits = Limits(max_new_tokens=24, max_length=MAX_LENGTH, temperature=TEMPERATURE)
    episodes = play(engine, renderer, tasks, jobs, limits)
    for episode in episodes:
        episode.advantage = 1.0 - 2.0 * (episode.episode % 2)
    config = ModelConfig(family="qwen3_vl", dtype="float32")
    metrics = Learner(config, stage, talker, resume=False).update(episodes)
    assert 0 < metrics["logprob_gap/max"] < TOLERANCE
    untempered = stage.rollout.model_copy(update={"temperature": 1.0})
    at_one = Learner(config, stage.model_copy(update={"rollout": untempered}), talker, resume=False)
    with pytest.raises(PolicyMismatch):
        at_one.update(episodes)


@torch.no_grad()
def test_a_tempered_engine_scores_as_every_other(
    start_engine: Callable[..., Any], talker: Path, renderer: Renderer, samples: Sequence[Sample]
) -> None:
    """Whole sequences, the last token among them, up to the engine's longest."""
    engine = start_engine(talker, use=EngineUse(tempered=True))
    model = model_at(talker)
    for request in requests_of(samples, renderer, 3):
        ids = [*request.token_ids, *[renderer.end_token_id] * (MAX_LENGTH - len(request.token_ids))]
        [scores] = engine.score([ScoreRequest(token_ids=ids, images=request.images)])
        expected = logprobs_of(model, ids, request.images, renderer.image_token_id)
        torch.testing.assert_close(torch.tensor(scores), expected, rtol=0, atol=5 * TOLERANCE)
