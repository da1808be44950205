"""transformers' own processors of the three families, as published but for the sizes of pictures."""

import copy
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import (
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from posttrain.rendering.rendering import Renderer

TEMPLATES = {"qwen2_vl": "qwen2_5_vl", "qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl"}


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    """Make the tiny tokenizer with `\\n\\n` as one token, as in the published vocabulary."""
    tokenizer = copy.deepcopy(Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl").processor.tokenizer)
    tokenizer.add_tokens(["\n\n"])
    return tokenizer


def make_processor(family: str, tokenizer: Any, template: str) -> Any:
    if family == "qwen3_vl":
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(
                patch_size=16,
                image_mean=[0.5] * 3,
                image_std=[0.5] * 3,
                size={"shortest_edge": 64**2, "longest_edge": 160**2},
            ),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(
                image_mean=[0.5] * 3,
                image_std=[0.5] * 3,
                size={"shortest_edge": 64**2, "longest_edge": 24 * 64**2},
            ),
            chat_template=template,
        )
    processor_class = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}[family]
    return processor_class(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 56**2, "longest_edge": 140**2}),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": 56**2, "longest_edge": 84**2}),
        chat_template=template,
    )


@pytest.fixture(scope="module")
def processors(tokenizer: Any) -> dict[str, Any]:
    """Make each family's processor with the published template."""
    folder = Path(trl.__file__).parent / "chat_templates"
    return {
        family: make_processor(family, tokenizer, (folder / f"{name}.jinja").read_text(encoding="utf-8"))
        for family, name in TEMPLATES.items()
    }
