"""The tiny models of every family: real classes, reproducible, exact in log-probs and positions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from posttrain.config import ModelConfig, TinyModelStage
from posttrain.media.images import save_image
from posttrain.models.load import forward_hidden, load_model
from posttrain.models.logprobs import token_logprobs
from posttrain.quickstart.tiny import TINY_TYPES, build_tiny
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.types import Block, ImageRef, Message, text_message

#: The first two weights and the sum of the absolute weights of the tiny Qwen3-VL of seed 0. The quickstart's
#: figures rest on them: other random draws are another model.
QWEN3_VL_SEED_0 = {
    "lm_head.weight": (-0.001320857, 0.04214128, 4414.30836),
    "model.visual.blocks.0.attn.qkv.weight": (-0.1369704, -0.1362454, 2255.35984),
    "model.language_model.layers.3.mlp.down_proj.weight": (-0.01887727, 0.02408203, 535.194892),
}


@pytest.fixture(scope="module", params=TINY_TYPES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    build_tiny(request.param, directory, seed=0)
    return directory


@pytest.fixture(scope="module")
def renderer(tiny: Path) -> Renderer:
    return Renderer.from_config(tiny, ModelConfig(max_pixels=96 * 96))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRef]:
    directory = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (200, 90), (50, 130)]
    return [
        save_image(Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)), directory)
        for width, height in sizes
    ]


@pytest.fixture
def batch(renderer: Renderer, images: list[ImageRef]) -> dict[str, torch.Tensor]:
    """Make a batch of two dialogues with images between the texts and one without, of different lengths."""
    blocks = tuple(
        block for image in images for block in (Block("image", image=image), Block("text", text=" and "))
    )
    dialogues = [
        [Message("user", blocks), text_message("assistant", "A"), text_message("user", "why?")],
        [text_message("user", "hi"), text_message("assistant", "hello")],
        [Message("user", blocks[:2]), text_message("assistant", "<think>\nhm\n</think>\n\nK")],
    ]
    return collate([renderer.render(messages) for messages in dialogues], renderer)


def test_is_the_real_class_in_its_family(tiny, renderer):
    config = AutoConfig.from_pretrained(tiny)
    model: Any = load_model(tiny, dtype="float32")
    assert type(model).__module__ == f"transformers.models.{config.model_type}.modeling_{config.model_type}"
    assert config.model_type.startswith(renderer.family)
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6
    assert model.config.image_token_id == renderer.image_token_id


def test_a_run_can_ask_for_every_type():
    for model_type in TINY_TYPES:
        stage = TinyModelStage(stage="tiny_model", model_type=model_type)
        assert model_type.removesuffix("_moe") == stage.family
    assert TinyModelStage(stage="tiny_model").model_type == "qwen3_vl"


def test_is_reproducible(tiny, tmp_path):
    model_type: Any = AutoConfig.from_pretrained(tiny).model_type
    build_tiny(model_type, tmp_path / "same", seed=0)
    build_tiny(model_type, tmp_path / "other", seed=1)
    names = sorted(path.name for path in tiny.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "same").iterdir())
    assert all((tiny / name).read_bytes() == (tmp_path / "same" / name).read_bytes() for name in names)
    assert (tiny / "model.safetensors").read_bytes() != (
        tmp_path / "other" / "model.safetensors"
    ).read_bytes()


def test_the_quickstarts_model_is_the_one_its_figures_were_made_with(tiny_checkpoint):
    weights = load_file(tiny_checkpoint / "model.safetensors")
    for name, expected in QWEN3_VL_SEED_0.items():
        weight = weights[name].double()
        assert [*weight[0, :2].tolist(), weight.abs().sum().item()] == pytest.approx(expected, rel=1e-5)


def test_logprobs_equal_those_of_the_full_logits(tiny, batch):
    model: Any = load_model(tiny, dtype="float32").eval()
    ids, kept = batch["input_ids"], batch["attention_mask"][:, 1:].bool()
    with torch.no_grad():
        hidden = forward_hidden(model, batch)
        found, entropy = token_logprobs(
            hidden[:, :-1][kept], model.get_output_embeddings().weight, ids[:, 1:][kept], chunk_size=7
        )
        reference: Any = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32).eval()
        logs = reference(**batch).logits[:, :-1][kept].float().log_softmax(-1)
    torch.testing.assert_close(found, logs.gather(1, ids[:, 1:][kept][:, None])[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy, -(logs.exp() * logs).sum(1), rtol=0, atol=1e-5)
    assert found.std() > 0.5  # the model does tell tokens apart


def test_positions_are_the_familys_own(tiny, batch):
    """A model computes from a batch the positions of its own `get_rope_index` for each row."""
    model: Any = load_model(tiny, dtype="float32").eval()
    positions, _ = model.base_model.get_rope_index(**without_pixels(batch))
    with torch.no_grad():
        found = forward_hidden(model, batch)
        expected = forward_hidden(model, batch | {"position_ids": positions})
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(found[kept], expected[kept], rtol=0, atol=0)
    merge = model.config.vision_config.spatial_merge_size
    first = positions[:, 0, batch["mm_token_type_ids"][0].bool()]
    start = 0
    for _, height, width in batch["image_grid_thw"][:3].tolist():
        rows, columns = height // merge, width // merge
        span = first[:, start : start + rows * columns]
        grid = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)).T
        assert torch.equal(span - span[:, :1], grid)
        start += rows * columns


def without_pixels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "pixel_values"}


def test_every_image_matters_and_only_to_its_own_row(tiny, batch):
    model: Any = load_model(tiny, dtype="float32").eval()
    patches = batch["image_grid_thw"].prod(1).cumsum(0).tolist()
    changed = batch["pixel_values"].clone()
    changed[patches[1] : patches[2]] *= -1  # the third image of the first row
    with torch.no_grad():
        before, after = (
            forward_hidden(model, batch | {"pixel_values": pixels})
            for pixels in (batch["pixel_values"], changed)
        )
    differs = (before - after).abs().amax(-1) > 1e-6
    row = batch["mm_token_type_ids"][0].bool()
    third = int(row.nonzero()[-(patches[2] - patches[1]) // 4 :][0])
    assert differs[0, third : int(batch["attention_mask"][0].sum())].all()
    assert not differs[0, :third].any()
    assert not differs[1:].any()


def test_every_part_gets_a_gradient(tiny, batch):
    model: Any = load_model(tiny, dtype="float32", freeze_vision_tower=False)
    kept = batch["attention_mask"][:, 1:].bool()
    hidden = forward_hidden(model, batch)[:, :-1][kept]
    logprobs, _ = token_logprobs(
        hidden, model.get_output_embeddings().weight, batch["input_ids"][:, 1:][kept]
    )
    (-logprobs.mean()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not torch.any(p.grad)]
    assert without == []
