"""The pixels of images are those of the checkpoint's own processor, for a model of any type and place."""

import pickle
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
from posttrain.rendering.pixel_making import ImagePatches, PixelMaker, VideoPatches
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
        maker = PixelMaker(processor, frames, dtype=dtype)
        made = maker.image(path)
        assert torch.equal(maker.patches(made), expected["pixel_values"].to(dtype))
        assert torch.equal(made.grid_thw, expected["image_grid_thw"][0])


def test_patches_of_several_images_follow_one_another(processors: dict[str, Any], tmp_path: Path) -> None:
    processor = processors["qwen3_vl"].image_processor
    maker = PixelMaker(processor, VideoFrames(processors["qwen3_vl"], VideoSettings()))
    sizes = [(150, 100), (64, 300), (700, 31)]
    paths = [picture(tmp_path / f"{width}.png", width, height) for width, height in sizes]
    made = [maker.image(path) for path in paths]
    expected = processor(images=[Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    sent: ImagePatches = pickle.loads(pickle.dumps(maker.image_patches))
    assert torch.equal(sent([pixels.values for pixels in made], "cpu"), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_kept_and_become_patches_where_the_model_is(
    processors: dict[str, Any], tmp_path: Path, clips: list[VideoRef], family: Any
) -> None:
    frames = VideoFrames(processors[family], VideoSettings())
    here = PixelMaker(processors[family].image_processor, frames, dtype=torch.bfloat16)
    elsewhere = here.on("meta")
    path = picture(tmp_path / "a.png", 150, 100)
    merged = processors[family].image_processor.merge_size ** 2
    for made, nbytes in (
        (elsewhere.image(path), here.nbytes),
        (elsewhere.video(clips[0], "hash"), here.video_nbytes),
    ):
        assert (made.values.dtype, made.values.device.type) == (torch.uint8, "cpu")
        assert made.values.nbytes == nbytes(int(made.grid_thw.prod()) // merged)
        assert len(here.patches(made)) == made.grid_thw.prod()
    sent: VideoPatches = pickle.loads(pickle.dumps(here.video_patches))
    films = [here.video(clip) for clip in clips[:2]]
    together = torch.cat([here.patches(film) for film in films])
    assert torch.equal(sent([film.values for film in films], "cpu"), together)
    assert elsewhere.patches(elsewhere.image(path)).shape == here.patches(here.image(path)).shape


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
