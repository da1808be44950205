"""Videos in the models: positions as published, and packed rows as if each sample were alone."""

import types
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl

from posttrain.media.images import save_image
from posttrain.models.load import forward_hidden, load_model
from posttrain.models.packed_attention import use_packed_attention
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.collation import collate, collate_packed
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.rendering.video_frames import VideoSettings
from posttrain.types import Block, Family, Message, VideoRef, text_message

MODELING = {"qwen2_vl": modeling_qwen2_vl, "qwen2_5_vl": modeling_qwen2_5_vl, "qwen3_vl": modeling_qwen3_vl}


@pytest.fixture(scope="module", params=get_args(Family))
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(family)
    build_tiny(family, folder)
    return folder


@pytest.fixture(scope="module")
def renderer(checkpoint: Path, family: Family) -> Renderer:
    """Show so many frames that a video's positions in time are its greatest."""
    return Renderer.from_pretrained(checkpoint, family, videos=VideoSettings(fps=4.0))


@pytest.fixture(scope="module")
def items(
    renderer: Renderer, clips: list[VideoRef], tmp_path_factory: pytest.TempPathFactory
) -> list[Rendered]:
    """Render a video, two videos around an image, text alone, and an image alone."""
    image = save_image(Image.new("RGB", (64, 64), "red"), tmp_path_factory.mktemp("images"))
    picture = Block("image", image=image)
    film = [Block("video", video=clip) for clip in clips]
    shown = [[film[0]], [film[2], picture, Block("text", text="and"), film[3]], [], [picture]]
    return [
        renderer.render(
            [
                Message("user", (*blocks, Block("text", text="What?" * (number + 1)))),
                text_message("assistant", "A" * 5),
            ]
        )
        for number, blocks in enumerate(shown)
    ]


@pytest.fixture
def model(checkpoint: Path, family: Family, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a model that computes in float64 even where transformers rounds to float32."""

    def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)

    def rotation(q: Any, k: Any, cos: Any, sin: Any) -> tuple[Any, ...]:
        cos, sin = cos.unsqueeze(-2).double(), sin.unsqueeze(-2).double()
        return tuple((x * cos + MODELING[family].rotate_half(x) * sin).to(x.dtype) for x in (q, k))

    monkeypatch.setattr(MODELING[family], "apply_rotary_pos_emb_vision", rotation)
    loaded: Any = load_model(checkpoint, dtype="float32").eval()
    for module in loaded.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(norm, module)
    return loaded.double()


def as_published(batch: dict[str, torch.Tensor], family: Family, tokens_per_second: int) -> torch.Tensor:
    """Compute [3, T] positions of a sample; text after an image or video follows all of its positions."""
    kinds = batch["mm_token_type_ids"][0].tolist()
    grids = {
        1: iter(batch.get("image_grid_thw", torch.empty(0, 3)).tolist()),
        2: iter(batch.get("video_grid_thw", torch.empty(0, 3)).tolist()),
    }
    seconds = iter(batch.get("second_per_grid_ts", torch.ones(9)).tolist())
    found: list[tuple[int, int, int]] = []
    pending: list[list[int]] = []
    while len(found) < len(kinds):
        after = max((max(place) for place in found), default=-1) + 1
        kind = kinds[len(found)]
        if kind == 0:
            found.append((after, after, after))
            continue
        if kind == 2 and family == "qwen3_vl":  # each pair of frames is a picture of its own
            if not pending:
                time, *sides = next(grids[2])
                pending = [[1, *sides]] * time
            time, height, width = pending.pop()
        else:
            time, height, width = next(grids[kind])
        step = tokens_per_second * next(seconds) if kind == 2 and family == "qwen2_5_vl" else 1
        found += [
            (after + int(t * step), after + y, after + x)
            for t in range(time)
            for y in range(height // 2)
            for x in range(width // 2)
        ]
    return torch.tensor(found).T


def test_positions_are_those_that_checkpoints_were_trained_with(
    family: Family, items: list[Rendered], model: Any, renderer: Renderer
) -> None:
    tokens_per_second = getattr(model.config.vision_config, "tokens_per_second", 0)
    overlapping = 0
    for item in items:
        batch = collate([item], renderer)
        given = {key: value for key, value in batch.items() if "pixel" not in key}
        found, offsets = model.base_model.get_rope_index(**given)
        expected = as_published(batch, family, tokens_per_second)
        assert torch.equal(found[:, 0], expected)
        assert offsets.item() == expected.max() + 1 - expected.shape[1]
        theirs = type(model.base_model).get_rope_index(model.base_model, **given)[0]
        overlapping += not torch.equal(theirs, found)
    assert bool(overlapping) == (family != "qwen3_vl")  # else the corrected positions are transformers' own
    both = collate(items, renderer)
    found, _ = model.base_model.get_rope_index(**{k: v for k, v in both.items() if "pixel" not in k})
    for row, item in enumerate(items):
        alone = as_published(collate([item], renderer), family, tokens_per_second)
        assert torch.equal(found[:, row, : alone.shape[1]], alone)


def test_packed_videos_are_as_if_alone(items: list[Rendered], model: Any, renderer: Renderer) -> None:
    row = collate_packed(items, renderer, model.base_model.get_rope_index)
    with torch.no_grad():
        alone = torch.cat([forward_hidden(model, collate([item], renderer))[0] for item in items])
        padded = collate(items, renderer)
        together = forward_hidden(model, padded)[padded["attention_mask"].bool()]
        use_packed_attention(model)
        packed = forward_hidden(model, row)[0]
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-8)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-8)


def test_images_and_videos_that_occur_twice_are_there_once(
    items: list[Rendered], model: Any, renderer: Renderer
) -> None:
    pair = [items[1], items[1], items[3]]  # two videos around an image, twice, and the image
    batch = collate(pair, renderer)
    shared = collate(pair, renderer, images_once=True)
    assert len(shared["pixel_values"]) * 3 == len(batch["pixel_values"])
    assert len(shared["pixel_values_videos"]) * 2 == len(batch["pixel_values_videos"])
    with torch.no_grad():
        found, expected = forward_hidden(model, shared), forward_hidden(model, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
