"""What headers tell of images and videos is what becomes of their pixels."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image
from transformers import Qwen2VLImageProcessor

from posttrain.media.images import MAX_ASPECT_RATIO
from posttrain.rendering.collation import collate
from posttrain.rendering.pixel_limits import PixelLimits
from posttrain.rendering.pixel_making import PixelMaker
from posttrain.rendering.pixels import HeaderSizes, ImageChangedError, PixelCache
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.video_frames import VideoFrames, VideoSettings
from posttrain.types import Block, ImageRef, Message, VideoRef, text_message

MODES = {"png": ("RGB", "RGBA", "P", "L", "1", "I;16", "LA"), "jpg": ("RGB", "L", "CMYK"), "gif": ("P", "L")}
MODES |= {"tiff": ("RGB", "P", "I;16"), "webp": ("RGB", "RGBA"), "bmp": ("RGB", "P", "1")}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_headers_tell_the_number_of_patches(data: st.DataObject, tmp_path: Path, processors):
    width, height = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 700))
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        return
    suffix = data.draw(st.sampled_from(sorted(MODES)))
    mode = data.draw(st.sampled_from(MODES[suffix]))
    grey = Image.linear_gradient("L").resize((width, height))
    image = Image.new(mode, (width, height)) if mode == "I;16" else grey.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = data.draw(st.integers(1, 8))
    path = tmp_path / f"image.{suffix}"
    more: dict[str, Any] = {"exif": exif} if suffix in ("png", "jpg", "webp", "tiff") else {}
    image.save(path, **more)
    patch = data.draw(st.sampled_from([14, 16]))
    least = data.draw(st.integers(1, 90)) * patch**2
    most = least + data.draw(st.integers(4, 900)) * patch**2
    processor: Any = Qwen2VLImageProcessor(
        patch_size=patch, size={"shortest_edge": least, "longest_edge": most}
    )
    frames = VideoFrames(processors["qwen2_vl"], VideoSettings())
    maker = PixelMaker(processor, frames)
    made = maker.image(str(path))
    ref, patches = HeaderSizes(maker).size(ImageRef(str(path)))
    assert patches == made.grid_thw.prod() == len(maker.patches(made))
    assert maker.nbytes(patches // 4) == made.values.nbytes
    assert PixelCache(maker, PixelLimits(1)).load(ref).sha256 == made.sha256


@pytest.fixture
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl", max_pixels=96 * 96)


def asked(*blocks: Block) -> list[Message]:
    return [Message("user", blocks), text_message("assistant", "A")]


def test_batches_are_those_of_loaded_pixels(renderer: Renderer, tmp_path: Path, clips: list[VideoRef]):
    Image.effect_noise((70, 90), 60).convert("RGB").save(tmp_path / "a.png")
    image = Block("image", image=ImageRef(str(tmp_path / "a.png")))
    messages = asked(image, Block("video", video=clips[0]), Block("text", text="?"), image)
    measured, loaded = renderer.counting().render(messages), renderer.render(messages)
    assert measured.token_ids == loaded.token_ids
    assert [each.ref.sha256 for each in measured.images] == ["", ""]
    assert [each.ref.sha256 for each in measured.videos] == [""]
    ours, theirs = collate([measured], renderer), collate([loaded], renderer)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("seen", [False, True])
def test_a_file_that_changes_after_it_was_measured_is_refused(renderer: Renderer, tmp_path: Path, seen: bool):
    renderer = Renderer(renderer.processor, "qwen3_vl", PixelLimits(1))
    path, other = tmp_path / "scene.png", ImageRef(str(tmp_path / "other.png"))
    Image.new("RGB", (80, 80), "red").save(path)
    Image.new("RGB", (80, 80), "green").save(other.path)
    rendered = renderer.counting().render(asked(Block("image", image=ImageRef(str(path)))))
    if seen:
        collate([rendered], renderer)
        os.utime(path, ns=(1, 1))
        renderer.pixels(other)  # takes the cache's only place
        collate([rendered], renderer)  # the file was touched, and has the same content
        renderer.pixels(other)
    Image.new("RGB", (80, 80), "blue").save(path)
    with pytest.raises(ImageChangedError, match=r"scene\.png: the (content|file) has"):
        collate([rendered], renderer)


def test_a_hash_that_was_given_is_checked_when_the_pixels_are_loaded(renderer: Renderer, tmp_path: Path):
    Image.new("RGB", (80, 80), "red").save(tmp_path / "scene.png")
    ref = ImageRef(str(tmp_path / "scene.png"), "0" * 64)
    rendered = renderer.counting().render(asked(Block("image", image=ref)))
    with pytest.raises(ImageChangedError, match=r"scene\.png: the content has hash"):
        collate([rendered], renderer)


def test_a_video_that_changes_after_it_was_measured_is_refused(
    renderer: Renderer, tmp_path: Path, clips: list[VideoRef]
):
    path = tmp_path / f"film{Path(clips[0].paths[0]).suffix}"
    path.write_bytes(Path(clips[0].paths[0]).read_bytes())
    ref = dataclasses.replace(clips[0], paths=(str(path),))
    rendered = renderer.counting().render(asked(Block("video", video=ref)))
    collate([rendered], renderer)
    path.write_bytes(path.read_bytes() + b"\0" * 8)
    with pytest.raises(ImageChangedError, match=r"film\..*: the content has hash"):
        collate([rendered], renderer)
