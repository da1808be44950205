"""One call of the vision tower for everything that a batch shows: transformers' own results and gradients."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

from posttrain.config.lora import LoraConfig
from posttrain.models.load import load_model
from posttrain.models.lora import with_lora
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import add_supervised_head
from posttrain.models.video_positions import continue_after_videos
from posttrain.quickstart.tiny import TINY_TYPES, TinyType, build_tiny
from posttrain.rendering.collation import collate, collate_packed
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.types import Family, VideoRef
from tests.unit.ranks import group_of_this_process
from tests.unit.unlike import KINDS, dialogues, rendered

TOWER = r"(.*\.)?visual\..*\.(qkv|proj|linear_fc1|linear_fc2|fc1|fc2)"


@pytest.fixture(scope="module", params=TINY_TYPES)
def model_type(request: pytest.FixtureRequest) -> TinyType:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(model_type: TinyType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(model_type)
    build_tiny(model_type, folder)
    return folder


@pytest.fixture(scope="module")
def renderer(checkpoint: Path, model_type: TinyType) -> Renderer:
    family = next(family for family in get_args(Family) if model_type.removesuffix("_moe") == family)
    return Renderer.from_pretrained(checkpoint, family)


@pytest.fixture(scope="module")
def items(
    renderer: Renderer, make_video: Callable[..., VideoRef], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Rendered]:
    return rendered(renderer, dialogues(tmp_path_factory.mktemp("shown"), make_video))


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one rank, for FSDP."""
    with group_of_this_process("gloo"):
        yield


def ours(checkpoint: Path) -> Any:
    return load_model(checkpoint, dtype="float32", freeze_vision_tower=False)


def theirs(checkpoint: Path) -> Any:
    """transformers' model, with the positions of text after videos corrected as in ours."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32")
    continue_after_videos(model)
    return model


def calls_of_the_tower(model: nn.Module) -> list[object]:
    calls: list[object] = []
    tower = next(module for name, module in model.named_modules() if name.endswith("visual"))
    tower.register_forward_pre_hook(lambda *given: calls.append(given))
    return calls


def learned(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits of a batch, and the gradients of a loss; a tower that is not called has none."""
    model.zero_grad()
    logits = model(**batch).logits
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits.log_softmax(-1) * weights).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), found


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-9, msg=name)


def test_results_and_gradients_are_transformers_own(
    checkpoint: Path, renderer: Renderer, items: dict[str, Rendered]
) -> None:
    mine, whole = ours(checkpoint), theirs(checkpoint)
    calls, calls_of_theirs = calls_of_the_tower(mine), calls_of_the_tower(whole)
    for kinds in (*([kind] for kind in KINDS), ["text", "image", "both"]):
        calls.clear()
        calls_of_theirs.clear()
        batch = collate([items[kind] for kind in kinds], renderer)
        assert_same(learned(mine, batch), learned(whole, batch))
        shows = kinds != ["text"]
        assert len(calls) == shows
        assert len(calls_of_theirs) == shows + ("both" in kinds)


def test_images_that_occur_twice_are_seen_once(
    checkpoint: Path, renderer: Renderer, items: dict[str, Rendered]
) -> None:
    pair = [items["both"], items["images"], items["image"], items["both"]]  # blue, blue red, red, blue
    batch = collate(pair, renderer)
    shared = collate(pair, renderer, images_once=True)
    assert len(shared["pixel_values"]) * 5 == 2 * len(batch["pixel_values"])
    assert_same(learned(ours(checkpoint), shared), learned(theirs(checkpoint), batch))


def test_a_sharded_tower_is_called_for_text_as_well(
    checkpoint: Path, renderer: Renderer, items: dict[str, Rendered], group: None
) -> None:
    batch = collate([items["text"]], renderer)
    expected = learned(theirs(checkpoint), batch)
    model = ours(checkpoint)
    calls = calls_of_the_tower(model)
    for block in model.model.visual.blocks:
        fully_shard(block)
    fully_shard(model)
    logits, gradients = learned(model, batch)
    assert len(calls) == 1
    assert len(gradients) == len(list(model.parameters()))
    local = {name: cast("DTensor", gradient).to_local() for name, gradient in gradients.items()}
    assert_same((logits, {name: local[name] for name in expected[1]}), expected)
    of_the_tower = [gradient for name, gradient in local.items() if name not in expected[1]]
    assert len(of_the_tower) == len(list(model.model.visual.parameters()))
    assert not torch.stack([gradient.abs().max() for gradient in of_the_tower]).any()
    with torch.no_grad():  # a sharded tower is gathered in measurements as well
        torch.testing.assert_close(model(**batch).logits, expected[0], rtol=1e-5, atol=1e-5)
    assert len(calls) == 2


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_packed_rows_with_adapters_checkpointing_and_head(
    checkpoint: Path, renderer: Renderer, items: dict[str, Rendered], adapted: bool
) -> None:
    found = []
    for load in (ours, theirs):
        model = load(checkpoint)
        row = collate_packed(list(items.values()), renderer, model.model.get_rope_index)
        labels = row["input_ids"].clone()
        labels[:, : labels.shape[1] // 2] = -100
        add_supervised_head(model)
        use_packed_attention(model)
        if adapted:
            model = with_lora(model, LoraConfig(rank=2, target_modules=TOWER), seed=0)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
        model.gradient_checkpointing_enable({"use_reentrant": False})
        calls = calls_of_the_tower(model)
        logprobs = model.train()(**row, supervised_labels=labels)
        logprobs.square().sum().backward()
        assert len(calls) == 1 + (load is theirs)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert len(gradients) == len([p for p in model.parameters() if p.requires_grad])
        found.append((logprobs.detach(), gradients))
    assert_same(*found)


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointing_computes_no_gradients_through_a_frozen_tower(
    checkpoint: Path, renderer: Renderer, items: dict[str, Rendered], frozen: bool
) -> None:
    model: Any = load_model(checkpoint, dtype="float32", freeze_vision_tower=frozen)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    followed: list[bool] = []
    last = model.model.visual.blocks[-1]
    last.register_forward_hook(lambda _, given, out: followed.append(out.requires_grad))
    _, gradients = learned(model.train(), collate([items["image"]], renderer))
    assert followed[0] is not frozen
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
