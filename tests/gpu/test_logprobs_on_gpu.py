"""The learner's log-probs and gradients on a GPU against those on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from posttrain.media.images import save_image
from posttrain.models.load import forward_hidden, load_model
from posttrain.models.logprobs import token_logprobs
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.types import Block, Message, text_message

pytestmark = pytest.mark.gpu


def test_float32_logprobs_and_gradients_equal_the_cpus(tiny_checkpoint: Path, tmp_path: Path) -> None:
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl", max_pixels=64 * 64)
    image = save_image(Image.radial_gradient("L").convert("RGB"), tmp_path)
    prompt = Message("user", (Block("image", image=image), Block("text", text="Which letter is it?")))
    batch = collate([renderer.render([prompt, text_message("assistant", "A")])], renderer)

    found = {}
    for device in ("cpu", "cuda"):
        placed: Any = load_model(tiny_checkpoint, dtype="float32", freeze_vision_tower=False)
        placed.to(device)
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        hidden = forward_hidden(placed, inputs)[0, :-1]
        head = placed.get_output_embeddings().weight
        logprobs, _ = token_logprobs(hidden, head, inputs["input_ids"][0, 1:])
        logprobs.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(placed.parameters(), float("inf"))
        found[device] = (logprobs.detach().cpu(), norm.cpu())

    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-3, atol=1e-4)
