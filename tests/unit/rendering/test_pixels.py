"""Images and videos are pre-processed once, within a bound, and never others than those referred to."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import Qwen2VLImageProcessor

from posttrain.media.images import save_image
from posttrain.rendering.pixel_limits import PixelLimits
from posttrain.rendering.pixel_making import PixelMaker
from posttrain.rendering.pixels import ImageChangedError, PixelCache
from posttrain.rendering.video_frames import VideoFrames, VideoSettings
from posttrain.types import ImageRef


@pytest.fixture(scope="module")
def image_processor() -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(size={"shortest_edge": 56**2, "longest_edge": 56**2})


@pytest.fixture(scope="module")
def make_cache(image_processor: Any, processors: dict[str, Any]) -> Callable[[int], PixelCache]:
    frames = VideoFrames(processors["qwen2_vl"], VideoSettings())
    return lambda max_bytes: PixelCache(PixelMaker(image_processor, frames), PixelLimits(max_bytes))


@pytest.fixture
def images(tmp_path: Path) -> list[ImageRef]:
    return [save_image(Image.new("RGB", (80, 80), colour), tmp_path) for colour in ("red", "green", "blue")]


def test_least_recently_used_goes_first(make_cache, images):
    red, green, blue = images
    one = make_cache(0).load(red).values.nbytes
    cache = make_cache(2 * one)
    first_red, first_green = cache.load(red), cache.load(green)
    assert cache.load(red) is first_red
    cache.load(blue)
    assert cache.nbytes == 2 * one
    assert cache.load(red) is first_red
    assert cache.load(green) is not first_green


def test_an_image_beyond_the_bound_is_still_served(make_cache, images):
    cache = make_cache(1)
    for ref in images:
        pixels = cache.load(ref)
        assert (tuple(pixels.grid_thw), pixels.sha256) == ((1, 4, 4), ref.sha256)
        assert cache.nbytes == pixels.values.nbytes


def test_same_pixels_under_two_names_are_held_once(make_cache, images, tmp_path):
    copy = tmp_path / "copy.bmp"
    Image.open(images[0].path).save(copy)
    cache = make_cache(2**20)
    assert cache.load(ImageRef(str(copy))) is cache.load(images[0])


def test_changed_file_is_refused_by_hash_and_read_anew_without(make_cache, tmp_path):
    path = tmp_path / "scene.png"
    Image.new("RGB", (80, 80), "red").save(path)
    cache = make_cache(0)
    before = cache.load(ImageRef(str(path)))
    Image.new("RGB", (80, 81), "blue").save(path)
    assert cache.load(ImageRef(str(path))).sha256 != before.sha256
    with pytest.raises(ImageChangedError, match=r"scene\.png"):
        cache.load(ImageRef(str(path), before.sha256))


def test_videos_share_the_bound_and_are_told_apart_by_how_they_are_shown(make_cache, images, clips):
    sizes = [make_cache(0).load_video(clip).values.nbytes for clip in clips[:2]]
    cache = make_cache(sum(sizes))
    films = [cache.load_video(clip) for clip in clips[:2]]
    assert [cache.load_video(clip) for clip in clips[:2]] == films
    assert cache.nbytes == sum(sizes)
    cache.load(images[0])
    assert cache.load_video(clips[1]) is films[1]
    assert cache.load_video(clips[0]) is not films[0]
    part = dataclasses.replace(clips[0], end=1.0)
    assert cache.load_video(part).sha256 == films[0].sha256
    assert cache.load_video(part).grid_thw[0] < films[0].grid_thw[0]
