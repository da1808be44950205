"""Prompts that show videos: engine and learner see the same frames at the same times, in every family."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from posttrain.inference.engine import stable_seed
from posttrain.models.video_positions import continue_after_videos
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.collation import collate
from posttrain.rendering.pixel_making import VideoPatches
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.video_frames import VideoSettings
from posttrain.rollout.episode import EpisodeJob, Limits, TaskEnvironments
from posttrain.types import Block, Family, Message, Sample, Trajectory, VideoRef
from tests.at_work import play
from tests.integration.engine_truth import TOLERANCE, model_at
from tools_env.environment import ToolEnvironment

LIMITS = Limits(max_new_tokens=12, max_length=500)


@dataclass
class Served:
    """A family's tiny model, in an engine and as transformers has it."""

    renderer: Renderer
    engine: Any
    model: Any


@pytest.fixture(scope="module", params=get_args(Family))
def served(
    request: pytest.FixtureRequest, start_engine: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Served:
    family = request.param
    if family == "qwen3_vl":
        checkpoint, engine = request.getfixturevalue("talker"), request.getfixturevalue("vllm_engine")
    else:
        checkpoint = tmp_path_factory.mktemp(family)
        build_tiny(family, checkpoint, seed=0)
        engine = start_engine(checkpoint)
    model = model_at(checkpoint)
    continue_after_videos(model)
    # Seconds between frames that are no multiple of a position in time.
    renderer = Renderer.from_pretrained(checkpoint, family, videos=VideoSettings(fps=2.7))
    return Served(renderer, engine, model)


@torch.no_grad()
def largest_gap(served: Served, episodes: Sequence[Trajectory], **changed: Callable[[Any], Any]) -> float:
    """Between the ledgers' log-probs and transformers', which may be shown something else than the engine."""
    batch = collate(episodes, served.renderer)
    batch |= {name: change(batch[name]) for name, change in changed.items()}
    logprobs = served.model(**batch).logits.log_softmax(-1)
    gap = 0.0
    for row, episode in enumerate(episodes):
        at = torch.tensor(episode.sampled).nonzero()[:, 0]
        learner = logprobs[row, at - 1, torch.tensor(episode.token_ids)[at]]
        gap = max(gap, (learner - torch.tensor(episode.logprobs)[at]).abs().max().item())
    return gap


def test_logprobs_after_videos_are_transformers_own_and_a_group_is_seen_once(
    served: Served,
    clips: list[VideoRef],
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    films = [Block("video", video=clip) for clip in clips]
    text = Block("text", text="What moves?")
    prompts = [(films[1], text), (films[0], *samples[0].messages[0].content, films[2])]
    jobs = [
        EpisodeJob(Sample(f"film-{group}", (Message("user", shown),)), "films", group, index, seed)
        for group, shown in enumerate(prompts)
        for index in range(3)
        for seed in [stable_seed(3, group, index)]
    ]
    seen: list[int] = []
    make = VideoPatches.__call__

    def counted(self: VideoPatches, videos: Sequence[torch.Tensor], device: Any) -> torch.Tensor:
        seen.append(len(videos))
        return make(self, videos, device)

    tasks = {"films": TaskEnvironments([], lambda: ToolEnvironment([], 1, tmp_path))}
    with monkeypatch.context() as patched:
        patched.setattr(VideoPatches, "__call__", counted)
        episodes = play(served.engine, served.renderer, tasks, jobs, LIMITS)
    assert sum(seen) == 3  # not once for every episode
    assert [len(each.videos) for each in episodes] == [1, 1, 1, 2, 2, 2]
    assert all(len(video.ref.sha256) == 64 for each in episodes for video in each.videos)
    assert largest_gap(served, episodes) < TOLERANCE
    assert largest_gap(served, episodes, pixel_values_videos=torch.zeros_like) > 1e-3
    if served.renderer.family == "qwen2_5_vl":
        assert largest_gap(served, episodes, second_per_grid_ts=lambda told: told * 3) > 100 * TOLERANCE
