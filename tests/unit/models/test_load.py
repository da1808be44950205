"""Loading, freezing, saving and the head-less forward pass, on the tiny model."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen3VLForConditionalGeneration,
)

from posttrain.media.images import save_image
from posttrain.models.load import VISION_TOWER, LoadError, forward_hidden, freeze, load_model, save_model
from posttrain.quickstart.tiny import TINY_TYPES, build_tiny
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.types import Block, Message, text_message


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")


@pytest.fixture
def batch(renderer: Renderer, tmp_path: Path) -> dict[str, torch.Tensor]:
    ref = save_image(Image.linear_gradient("L").convert("RGB"), tmp_path)
    with_image = Message("user", (Block("image", image=ref), Block("text", text="What is this?")))
    dialogues = [[with_image, text_message("assistant", "A")], [text_message("user", "hi")]]
    return collate([renderer.render(messages) for messages in dialogues], renderer)


def parts_that_train(model: torch.nn.Module) -> set[str]:
    """Return the parts of a model that have a trainable parameter."""
    parts = {
        r"visual\.(blocks|patch_embed|pos_embed)\.": "tower",
        r"visual\.(merger|deepstack_merger_list)\.": "merger",
        r"language_model\.|lm_head\.": "text",
    }
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {part for pattern, part in parts.items() if any(re.search(pattern, name) for name in trainable)}


@pytest.mark.parametrize(
    ("tower", "merger", "trained"),
    [
        (True, False, {"merger", "text"}),
        (True, True, {"text"}),
        (False, True, {"tower", "text"}),
        (False, False, {"tower", "merger", "text"}),
    ],
)
def test_freezes_by_name(tiny_checkpoint, tower, merger, trained):
    model = load_model(tiny_checkpoint, dtype="float32", freeze_vision_tower=tower, freeze_merger=merger)
    assert parts_that_train(model) == trained
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all("visual." in name for name in frozen)


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_freezes_in_every_family(model_type, tmp_path):
    build_tiny(model_type, tmp_path)
    assert parts_that_train(load_model(tmp_path)) == {"merger", "text"}
    assert parts_that_train(load_model(tmp_path, freeze_merger=True)) == {"text"}
    assert parts_that_train(load_model(tmp_path, freeze_vision_tower=False)) == {"tower", "merger", "text"}


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_a_frozen_tower_is_not_run_backward_with_checkpointing(model_type, tmp_path):
    """transformers' checkpointing has the patches of Qwen2-VL and Qwen2.5-VL ask for gradients."""
    build_tiny(model_type, tmp_path)
    model = load_model(tmp_path, dtype="float32").train()
    model.gradient_checkpointing_enable()
    seen = model.config.vision_config
    channels = getattr(seen, "in_channels", None) or seen.in_chans
    pixels = torch.randn(16, channels * seen.temporal_patch_size * seen.patch_size**2)
    asked = []
    for name, module in model.named_modules():
        if re.search(r"visual\.blocks\.\d+$", name):
            module.register_forward_hook(lambda _, given, made: asked.append(made.requires_grad))
    model.get_submodule("model.visual")(pixels, grid_thw=torch.tensor([[1, 4, 4]]))
    assert asked
    assert not any(asked)


def test_a_freeze_that_matches_nothing_is_an_error():
    with pytest.raises(LoadError, match="nothing was frozen"):
        freeze(torch.nn.Linear(2, 2), VISION_TOWER)


def test_loads_the_unchanged_class_in_the_precision_asked(tiny_checkpoint):
    assert type(load_model(tiny_checkpoint, dtype="float32")) is Qwen3VLForConditionalGeneration
    assert {p.dtype for p in load_model(tiny_checkpoint, dtype="bfloat16").parameters()} == {torch.bfloat16}


def test_hidden_states_give_the_models_logits(tiny_checkpoint, batch):
    model = load_model(tiny_checkpoint, dtype="float32").eval()
    with torch.no_grad():
        hidden = forward_hidden(model, batch)
        expected = model(**batch).logits
    assert hidden.shape == (*batch["input_ids"].shape, model.config.text_config.hidden_size)
    head: Any = model.get_output_embeddings()
    torch.testing.assert_close(head(hidden), expected)


def test_padding_changes_nothing(tiny_checkpoint, batch):
    model = load_model(tiny_checkpoint, dtype="float32").eval()
    length = int(batch["attention_mask"][1].sum())
    with torch.no_grad():
        padded = forward_hidden(model, batch)[1, :length]
        alone = forward_hidden(model, {"input_ids": batch["input_ids"][1:, :length]})[0]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)


def test_saved_directory_loads_as_it_is(tiny_checkpoint, renderer, batch, tmp_path):
    model = load_model(tiny_checkpoint, dtype="float32")
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(1.5)
    save_model(model, renderer.processor, tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model.eval()(**batch).logits, rtol=0, atol=0)
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert processor.chat_template == renderer.processor.chat_template
    assert processor.image_processor.size == renderer.processor.image_processor.size
    assert processor.tokenizer.get_vocab() == renderer.processor.tokenizer.get_vocab()


def test_experts_are_saved_as_published(tmp_path):
    """Experts are written as [experts, in, out], which vLLM reads, and not as transformers holds them."""
    build_tiny("qwen3_vl_moe", tmp_path / "tiny")
    model: Any = load_model(tmp_path / "tiny", dtype="float32")
    model.save_pretrained(tmp_path / "saved")
    for directory in (tmp_path / "tiny", tmp_path / "saved"):
        weights = load_file(directory / "model.safetensors")
        experts = model.model.language_model.layers[0].mlp.experts
        for name in ("gate_up_proj", "down_proj"):
            written = weights[f"model.language_model.layers.0.mlp.experts.{name}"]
            torch.testing.assert_close(
                written, getattr(experts, name).detach().transpose(1, 2), rtol=0, atol=0
            )
    again = load_model(tmp_path / "saved", dtype="float32").state_dict()
    torch.testing.assert_close(again, model.state_dict(), rtol=0, atol=0)


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_missing_weight_is_refused(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["model.language_model.norm.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"1 weights are missing, such as .*language_model\.norm\.weight"):
        load_model(copied)


def test_pickled_weights_are_refused(copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="safetensors"):
        load_model(copied)


def test_other_models_and_missing_directories_are_refused(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text()) | {"model_type": "llava"}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match="'llava' is none of qwen2_vl"):
        load_model(copied)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match="no readable model configuration"):
        load_model(tmp_path / "empty")
