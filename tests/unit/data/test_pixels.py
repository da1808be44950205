"""Images are pre-processed once, within a bound, and never another image than the one referred to."""

from pathlib import Path

import pytest
from PIL import Image
from transformers import Qwen2VLImageProcessor

from posttrain.data.pixels import ImageChangedError, PixelCache
from posttrain.images import save_image
from posttrain.types import ImageRef


@pytest.fixture(scope="module")
def image_processor() -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(size={"shortest_edge": 56**2, "longest_edge": 56**2})


@pytest.fixture
def images(tmp_path: Path) -> list[ImageRef]:
    return [save_image(Image.new("RGB", (80, 80), colour), tmp_path) for colour in ("red", "green", "blue")]


def test_least_recently_used_goes_first(image_processor, images):
    red, green, blue = images
    one = PixelCache(image_processor, max_bytes=0).load(red).values.nbytes
    cache = PixelCache(image_processor, max_bytes=2 * one)
    first_red, first_green = cache.load(red), cache.load(green)
    assert cache.load(red) is first_red
    cache.load(blue)
    assert cache.nbytes == 2 * one
    assert cache.load(red) is first_red
    assert cache.load(green) is not first_green


def test_an_image_beyond_the_bound_is_still_served(image_processor, images):
    cache = PixelCache(image_processor, max_bytes=1)
    for ref in images:
        pixels = cache.load(ref)
        assert (tuple(pixels.grid_thw), pixels.sha256) == ((1, 4, 4), ref.sha256)
        assert cache.nbytes == pixels.values.nbytes


def test_same_pixels_under_two_names_are_held_once(image_processor, images, tmp_path):
    copy = tmp_path / "copy.bmp"
    Image.open(images[0].path).save(copy)
    cache = PixelCache(image_processor, max_bytes=2**20)
    assert cache.load(ImageRef(str(copy))) is cache.load(images[0])


def test_changed_file_is_refused_by_hash_and_read_anew_without(image_processor, tmp_path):
    path = tmp_path / "scene.png"
    Image.new("RGB", (80, 80), "red").save(path)
    cache = PixelCache(image_processor, max_bytes=0)
    before = cache.load(ImageRef(str(path)))
    Image.new("RGB", (80, 81), "blue").save(path)
    assert cache.load(ImageRef(str(path))).sha256 != before.sha256
    with pytest.raises(ImageChangedError, match=r"scene\.png"):
        cache.load(ImageRef(str(path), before.sha256))
