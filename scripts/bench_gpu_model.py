"""What `bench_gpu.py` trains: a model of Qwen3-VL-2B's shape with random weights, and packed rows for it."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from posttrain.media.images import save_image
from posttrain.models.supervised_head import IGNORED
from posttrain.quickstart.tiny import build_tokenizer
from posttrain.rendering.chat_templates import chat_template
from posttrain.rendering.collation import collate_packed
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.types import Block, Message, text_message

#: Qwen3-VL-2B's widths.
TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5_000_000.0,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "patch_size": 16,
    "deepstack_visual_indexes": [5, 11, 17],
    "num_position_embeddings": 2304,
}


def build_2b(folder: Path, device: torch.device) -> None:
    """Write a checkpoint of Qwen3-VL-2B's shape, with random weights and a small tokenizer."""
    tokenizer = build_tokenizer()
    pixels = {
        "patch_size": 16,
        "size": {"shortest_edge": 256**2, "longest_edge": 1024**2},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    id_of = tokenizer.get_vocab().__getitem__
    ends = {"pad_token_id": id_of("<|endoftext|>"), "eos_token_id": id_of("<|im_end|>")}
    config = Qwen3VLConfig(
        text_config=TEXT | ends | {"bos_token_id": None},
        vision_config=VISION,
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**pixels),
        chat_template=chat_template("qwen3_vl"),
    ).save_pretrained(folder)


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        row: Most tokens of a packed row.
        rows: Rows of a step.
        side: Height and width of an image.
        answer: Most characters of an answer.
        steps: Steps that are timed.
        matrix: Height and width of the matrices whose product is timed.
        positions: Positions whose log-probs are timed.
        rounds: Turns of the sides that are compared.
    """

    row: int = 16384
    rows: int = 2
    side: int = 1024
    answer: int = 1600
    steps: int = 5
    matrix: int = 8192
    positions: int = 8192
    rounds: int = 5


#: For a CPU.
TINY = Sizes(row=128, rows=2, side=64, answer=24, steps=1, matrix=256, positions=128, rounds=3)


def render_rows(sizes: Sizes, renderer: Renderer, folder: Path) -> list[list[Rendered]]:
    """Render the dialogues of some rows: an image, a question and an answer of one of several lengths."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    rows: list[list[Rendered]] = []
    for _ in range(sizes.rows):
        row: list[Rendered] = []
        room = sizes.row
        while True:
            pixels = noise.integers(0, 256, (sizes.side, sizes.side, 3), dtype=np.uint8)
            image = save_image(Image.fromarray(pixels), folder / "images")
            asked, answered = (
                "".join(rng.choices("abcdefgh ", k=rng.randint(longest // 4, longest)))
                for longest in (sizes.answer // 4, sizes.answer)
            )
            shown = Message("user", (Block("image", image=image), Block("text", text=asked)))
            dialogue = renderer.render([shown, text_message("assistant", answered.strip() or "a")])
            if len(dialogue.token_ids) > room:
                break
            row.append(dialogue)
            room -= len(dialogue.token_ids)
        rows.append(row)
    return rows


def packed_rows(sizes: Sizes, model: Any, folder: Path, device: torch.device) -> list[dict[str, Tensor]]:
    """The packed rows of a step, with labels on the answers."""
    renderer = Renderer.from_pretrained(folder, "qwen3_vl")
    made = []
    for items in render_rows(sizes, renderer, folder):
        row = collate_packed(items, renderer, model.base_model.get_rope_index)
        learned = torch.tensor([flag for item in items for flag in (False, *item.supervised[1:])])
        row["labels"] = row["input_ids"].masked_fill(~learned, IGNORED)
        made.append({name: tensor.to(device) for name, tensor in row.items()})
    return made
