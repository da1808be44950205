"""Pixels that are made on a GPU, of bytes from the host, against those made on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.types import Block, ImageRef, Message, text_message

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_equal_the_cpus_bit_by_bit(tiny_checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    blocks = []
    for number, size in enumerate([(90, 70, 3), (640, 913, 3), (1300, 1500, 3)]):
        noise = np.random.default_rng(number).integers(0, 256, size, np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
        blocks.append(Block("image", image=ImageRef(str(tmp_path / f"{number}.png"))))
    here = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl", max_pixels=1024**2, pixel_dtype=dtype)
    rendered = here.counting().render([Message("user", tuple(blocks)), text_message("assistant", "A")])
    on_cpu, on_gpu = collate([rendered], here), collate([rendered], here.on("cuda"))
    assert on_gpu["pixel_values"].is_cuda
    assert torch.equal(on_gpu["pixel_values"].cpu(), on_cpu["pixel_values"])
    assert torch.equal(on_gpu["image_grid_thw"], on_cpu["image_grid_thw"])
