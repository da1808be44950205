"""The pixels of images are those of the checkpoint's own processor, for a model of any type and place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from posttrain.models.backbone import vision_backbone
from posttrain.models.load import load_model
from posttrain.quickstart.tiny import TinyType, build_tiny
from posttrain.rendering.collation import collate
from posttrain.rendering.pixel_making import PixelMaker
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.video_frames import VideoFrames, VideoSettings
from posttrain.types import Block, ImageRef, Message, VideoRef, text_message

FAMILIES: list[TinyType] = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def picture(path: Path, width: int, height: int) -> str:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return str(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(64, 64), (913, 640), (31, 800), (1500, 1333)])
def test_patches_are_the_processors(
    processors: dict[str, Any], tmp_path: Path, size: Any, dtype: Any
) -> None:
    path = picture(tmp_path / "a.png", *size)
    for patch, mean in ((14, None), (16, [0.5] * 3)):
        settings: dict[str, Any] = {"image_mean": mean, "image_std": mean} if mean else {}
        limits = {"shortest_edge": 64**2, "longest_edge": 1024**2}
        processor: Any = Qwen2VLImageProcessor(patch_size=patch, size=limits, **settings)
        expected = processor(images=[Image.open(path)], return_tensors="pt")
        frames = VideoFrames(processors["qwen2_vl"], VideoSettings())
        made = PixelMaker(processor, frames, dtype=dtype).image(path)
        assert torch.equal(made.values, expected["pixel_values"].to(dtype))
        assert torch.equal(made.grid_thw, expected["image_grid_thw"][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_kept_for_a_model_elsewhere_and_become_the_same_patches(
    processors: dict[str, Any], tmp_path: Path, clips: list[VideoRef], family: Any
) -> None:
    frames = VideoFrames(processors[family], VideoSettings())
    here = PixelMaker(processors[family].image_processor, frames, dtype=torch.bfloat16)
    elsewhere = here.on("meta")
    path = picture(tmp_path / "a.png", 150, 100)
    for ours, theirs in (
        (elsewhere.image(path), here.image(path)),
        (elsewhere.video(clips[0], "hash"), here.video(clips[0], "hash")),
    ):
        assert ours.values.dtype == torch.uint8
        assert ours.values.device.type == "cpu"
        assert 4 * ours.values.nbytes <= 2 * theirs.values.nbytes
        assert torch.equal(here.patches(ours), theirs.values)
        assert torch.equal(ours.grid_thw, theirs.grid_thw)
    assert elsewhere.patches(elsewhere.image(path)).shape == here.image(path).values.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_tower_sees_the_same_in_bfloat16(tmp_path: Path, family: Any) -> None:
    build_tiny(family, tmp_path)
    image = Block("image", image=ImageRef(picture(tmp_path / "a.png", 150, 100)))
    model: Any = vision_backbone(load_model(tmp_path, dtype="bfloat16").eval())
    features = []
    for dtype in (torch.float32, torch.bfloat16):
        renderer = Renderer.from_pretrained(tmp_path, family, max_pixels=160**2, pixel_dtype=dtype)
        rendered = renderer.render([Message("user", (image,)), text_message("assistant", "A")])
        batch = collate([rendered], renderer)
        assert batch["pixel_values"].dtype == dtype
        with torch.no_grad():
            found = model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
        features.append(torch.cat(list(found.pooler_output)))
    assert torch.equal(*features)
