"""Packed rows on real tiny models of every family: each sample as if it were alone."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.media.images import save_image
from posttrain.models.load import forward_hidden, load_model
from posttrain.models.packed_attention import packed_sdpa, use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.quickstart.tiny import TinyType, build_tiny
from posttrain.rendering.collation import collate, collate_packed
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.types import Block, Family, Message, text_message
from tests.unit.models.reference_flash import Flash

FAMILIES: dict[str, Family] = {"qwen3_vl_moe": "qwen3_vl"}


def dialogues(renderer: Renderer, folder: Path) -> list[Rendered]:
    """Make dialogues with text only, with one image, and with two images of different sizes."""
    rng = np.random.default_rng(0)
    sides = ((64, 64), (90, 40), (48, 100))
    blocks = [
        Block(
            "image", image=save_image(Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)), folder)
        )
        for s in sides
    ]
    shown = ([], blocks[:1], blocks[1:])
    return [
        renderer.render(
            [
                Message("user", (*images, Block("text", text="Which letter?" * (n + 1)))),
                text_message("assistant", "A" * 9),
            ]
        )
        for n, images in enumerate(shown)
    ]


def tiny(model_type: TinyType, folder: Path) -> tuple[Any, Renderer]:
    """Make a tiny model and its renderer."""
    build_tiny(model_type, folder)
    renderer = Renderer.from_pretrained(
        folder,
        FAMILIES.get(model_type, model_type),  # pyright: ignore[reportArgumentType]
        min_pixels=32**2,
        max_pixels=96**2,
    )
    return load_model(folder, dtype="float32").eval(), renderer


@pytest.mark.parametrize("model_type", get_args(TinyType))
def test_each_sample_is_as_if_alone(model_type: TinyType, tmp_path: Path) -> None:
    model, renderer = tiny(model_type, tmp_path / "model")
    items = dialogues(renderer, tmp_path)
    with torch.no_grad():
        alone = torch.cat([forward_hidden(model, collate([item], renderer))[0] for item in items])
        row = collate_packed(items, renderer, model.base_model.get_rope_index)
        masked = forward_hidden(model, row)[0]
        use_packed_attention(model)
        found = forward_hidden(model, row)[0]
    assert row["position_ids"].shape == (4, 1, sum(len(item.token_ids) for item in items))
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(masked, alone, rtol=1e-4, atol=2e-5)


def test_positions_and_pixels_are_those_of_the_samples(tiny_checkpoint: Path, tmp_path: Path) -> None:
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl", min_pixels=32**2, max_pixels=96**2)
    items = dialogues(renderer, tmp_path)
    rope_index: Any = load_model(tiny_checkpoint, dtype="float32").base_model.get_rope_index
    row = collate_packed(items, renderer, rope_index)
    assert row["input_ids"][0].tolist() == [token for item in items for token in item.token_ids]
    places = [place for item in items for place in range(len(item.token_ids))]
    assert row["position_ids"][0, 0].tolist() == places
    axes = []
    for item in items:
        batch = collate([item], renderer)
        axes.append(
            rope_index(
                batch["input_ids"],
                mm_token_type_ids=batch["mm_token_type_ids"],
                image_grid_thw=batch.get("image_grid_thw"),
            )[0][:, 0]
        )
    assert torch.equal(row["position_ids"][1:, 0], torch.cat(axes, 1))
    assert torch.equal(row["pixel_values"], collate(items, renderer)["pixel_values"])


@pytest.mark.parametrize("model_type", get_args(TinyType))
def test_flash_attention_gives_the_same_with_every_row(
    model_type: TinyType, flash: Flash, tmp_path: Path
) -> None:
    model, renderer = tiny(model_type, tmp_path / "model")
    items = dialogues(renderer, tmp_path)
    row = collate_packed(items, renderer, model.base_model.get_rope_index)
    padded = collate(items, renderer)
    seen = padded["attention_mask"].bool()
    flashing: Any = load_model(tmp_path / "model", dtype="float32").eval()
    flashing.set_attn_implementation("flash_attention_2")
    with torch.no_grad():
        expected = forward_hidden(model, padded)[seen]
        torch.testing.assert_close(forward_hidden(flashing, padded)[seen], expected, rtol=1e-4, atol=2e-5)
        flash.places.clear()
        use_packed_attention(flashing)
        found = forward_hidden(flashing, row)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    depths = [getattr(model.config, part).to_dict() for part in ("vision_config", "text_config")]
    tower, layers = depths[0]["depth"], depths[1]["num_hidden_layers"]
    assert len(flash.places) == tower + layers  # every layer's kernel is that of FlashAttention
    ends = np.cumsum([0, *(len(item.token_ids) for item in items)]).tolist()
    assert [places.tolist() for places in flash.places[tower:]] == [ends] * layers
    assert len({id(places) for places in flash.places[tower:]}) == 1  # computed once
    assert {type(longest) for longest in flash.longest} == {int}  # a tensor would make the GPU wait
    windows = len({len(places) for places in flash.places[:tower]})
    assert windows == (2 if model_type == "qwen2_5_vl" else 1)  # whole images in one of its blocks


def test_only_packed_rows_are_taken(tiny_checkpoint: Path, tmp_path: Path) -> None:
    states = torch.zeros(2, 1, 3, 4)
    with pytest.raises(ValueError, match="packed rows only"):
        packed_sdpa(torch.nn.Identity(), states, states, states, None, [3])
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    model = load_model(tiny_checkpoint, dtype="float32")
    use_packed_attention(model)
    with pytest.raises(ValueError, match="packed rows only"):
        forward_hidden(model, collate(dialogues(renderer, tmp_path), renderer))


class Lookups(TorchDispatchMode):
    """Counts what a GPU would wait for: the search of places, and numbers that Python reads."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func in (torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default)
        return func(*args, **(kwargs or {}))


def test_samples_are_found_once_and_not_in_every_layer(tiny_checkpoint: Path) -> None:
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    items = [
        renderer.render([text_message("user", "hi" * n), text_message("assistant", "A")]) for n in (1, 2, 3)
    ]
    model: Any = load_model(tiny_checkpoint, dtype="float32").train()
    use_packed_attention(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    row = collate_packed(items, renderer, model.base_model.get_rope_index)
    assert model.config.text_config.num_hidden_layers > 2
    with Lookups() as lookups:
        forward_hidden(model, row).sum().backward()
    assert lookups.number <= 1


def test_the_head_sees_supervised_tokens_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    items = dialogues(renderer, tmp_path)
    model: Any = load_model(tiny_checkpoint, dtype="float32")
    batch = collate(items, renderer)
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for row, item in enumerate(items):
        flags = torch.tensor(item.supervised)
        labels[row, : len(flags)][flags] = torch.tensor(item.token_ids)[flags]
    with torch.no_grad():
        logs = model(**batch).logits[:, :-1].log_softmax(-1)
        chosen = labels[:, 1:] != IGNORED
        expected = logs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0][chosen]
        add_supervised_head(model)
        found = model(**batch, supervised_labels=labels)
        assert model(**batch).logits.shape[:2] == labels.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
