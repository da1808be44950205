"""Which frames of a video are shown: against transformers' video processors, and within the budget.

That the tokens and pixels of dialogues with videos are those of transformers' processors is tested with the
other dialogues, in test_rendering_families.
"""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers.video_utils import VideoMetadata

from posttrain.config import ModelConfig
from posttrain.media.videos import read_frames, video_info
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.rendering.sample_tokens import SampleTokens
from posttrain.rendering.video_frames import VideoSettings
from posttrain.types import Block, Family, Message

FAMILIES = get_args(Family)

#: Where videos are shown otherwise than by transformers' processors, and why.
KNOWN_DIFFERENCES = {
    "videos_are_sampled": "The processor of Qwen2-VL and Qwen2.5-VL shows every frame unless it is told a "
    "rate, Qwen3-VL's two a second. Ours show `model.video_fps` a second, chosen by the same processor.",
    "videos_have_a_budget": "transformers bounds the pixels of a frame, or of all frames, by numbers of the "
    "checkpoint. A video of more than `model.video_max_tokens` tokens is shown smaller here, then at fewer "
    "frames; one within the budget is shown as transformers shows it.",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_videos_are_sampled(family, processors, clips):
    renderer = Renderer(processors[family], family)
    ref = clips[0]
    theirs: Any = processors[family].video_processor
    whole = np.stack(list(read_frames(ref, video_info(ref).frames)))
    metadata = [VideoMetadata(total_num_frames=40, fps=10.0)]
    unasked = theirs([whole], video_metadata=metadata, return_tensors="pt")["video_grid_thw"][0, 0]
    assert unasked == (4 if family == "qwen3_vl" else 20)
    made = theirs(
        [whole],
        video_metadata=metadata,
        fps=2.0,
        do_sample_frames=True,
        return_metadata=True,
        return_tensors="pt",
    )
    plan = renderer.videos.plan(ref)
    assert list(plan.numbers) == list(made["video_metadata"][0].frames_indices)
    assert plan.grid_thw.tolist() == made["video_grid_thw"][0].tolist() == [4, *plan.grid_thw[1:].tolist()]
    assert torch.equal(renderer.media.patches(renderer.media.load_video(ref)), made["pixel_values_videos"])
    slower = Renderer(processors[family], family, videos=VideoSettings(fps=1.5)).videos.plan(ref)
    assert len(slower.numbers) == 6
    assert Renderer(processors[family], family, videos=VideoSettings(max_frames=2)).videos.plan(ref).numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_videos_have_a_budget(family, processors, clips):
    def shown(most: int) -> Rendered:
        renderer = Renderer(processors[family], family, videos=VideoSettings(max_tokens=most))
        return renderer.render([Message("user", (Block("video", video=clips[0]),))])

    free = shown(16_384).videos[0].num_tokens
    assert shown(free) == shown(16_384)
    for most in range(1, free):
        rendered = shown(most)
        (video,) = rendered.videos
        assert 0 < video.num_tokens <= most
        assert video.num_tokens > most / 6 or most < 8, (most, video.num_tokens)  # and little is left unused
    assert len(shown(1).token_ids) < len(shown(free).token_ids)


def test_the_runs_settings_decide_and_are_part_of_what_lengths_are_kept_for(tiny_checkpoint, clips):
    def renderer(**keys: Any) -> Renderer:
        return Renderer.from_config(
            tiny_checkpoint, ModelConfig.model_validate({"family": "qwen3_vl"} | keys)
        )

    usual = renderer()
    assert len(usual.videos.plan(clips[0]).numbers) == 8
    assert usual.processor.video_processor.fps == 2.0
    for keys, frames in (
        ({"video_fps": 5.0}, 20),
        ({"video_max_frames": 6}, 6),
        ({"video_max_tokens": 2}, 4),
        ({"video_max_pixels": 16**2}, 8),
    ):
        other = renderer(**keys)
        assert len(other.videos.plan(clips[0]).numbers) == frames, keys
        assert SampleTokens(other).identity != SampleTokens(usual).identity
    assert SampleTokens(renderer()).identity == SampleTokens(usual).identity
    with pytest.raises(ValidationError, match="video_fps"):
        renderer(video_fps=0)


def test_every_difference_has_its_test():
    assert all(f"test_{name}" in globals() for name in KNOWN_DIFFERENCES)
