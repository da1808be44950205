"""Ranks whose batches differ in kind issue the same collectives, in the same order: none waits for ever."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg  # the backend "fake": a rank of several without the others
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, AutoModelForImageTextToText

from posttrain.config.lora import LoraConfig
from posttrain.models.backbone import vision_backbone
from posttrain.models.load import load_model
from posttrain.models.lora import adapters_off, with_lora
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.quickstart.tiny import TINY_TYPES, TinyType, build_tiny
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.training.core.sharding import Sharding, reduce_over_replicas, shard
from posttrain.types import Family, VideoRef
from tests.unit.ranks import group_of_this_process
from tests.unit.unlike import KINDS, dialogues, rendered

EVERYWHERE = r".*\.(q_proj|qkv|linear_fc1|fc1|gate_proj)"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What of a model is trained."""

    tower: bool = False
    merger: bool = False
    language_model: bool = True
    lora: str | None = None
    checkpointing: bool = True


TRAINED = {
    "merger and language model": Trained(merger=True),
    "language model": Trained(),
    "all": Trained(tower=True, merger=True),
    "all without checkpointing": Trained(tower=True, merger=True, checkpointing=False),
    "tower and language model": Trained(tower=True),
    "adapters": Trained(lora=r".*language_model.*\.q_proj"),
    "adapters everywhere": Trained(tower=True, merger=True, lora=EVERYWHERE),
    "nothing": Trained(language_model=False),
}
CASES = [
    (model_type, trained)
    for model_type in TINY_TYPES
    for trained in TRAINED
    if model_type != "qwen3_vl_moe" or trained in ("merger and language model", "all")
]


#: What FSDP2 calls, with the argument whose size tells that of the collective.
COLLECTIVES = {"all_gather_single": "output_tensor", "reduce_scatter_single": "input", "all_reduce": "tensor"}


@pytest.fixture
def issued(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Lists the collectives that are issued: each operation, its size and type, and its group."""
    found: list[object] = []

    def listed(name: str, sized: str) -> Callable[..., object]:
        original = getattr(dist, name)

        def collective(*arguments: Any, **keywords: Any) -> object:
            given = inspect.signature(original).bind(*arguments, **keywords).arguments
            found.append((name, given[sized].numel(), given[sized].dtype, given["group"].group_name))
            return original(*arguments, **keywords)

        return collective

    for name, sized in COLLECTIVES.items():
        monkeypatch.setattr(dist, name, listed(name, sized))
    return found


@pytest.fixture(scope="module", autouse=True)
def two_ranks() -> Iterator[None]:
    with group_of_this_process("fake", ranks=2):
        yield


@pytest.fixture(scope="module")
def make(
    make_video: Callable[..., VideoRef], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[TinyType], tuple[Path, dict[str, dict[str, torch.Tensor]]]]:
    """Makes a checkpoint of few layers, and a batch of each kind for its model."""
    shown = dialogues(tmp_path_factory.mktemp("shown"), make_video)
    made: dict[TinyType, tuple[Path, dict[str, dict[str, torch.Tensor]]]] = {}

    def of(model_type: TinyType) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
        if model_type not in made:
            folder = tmp_path_factory.mktemp(model_type)
            build_tiny(model_type, folder)
            config = AutoConfig.from_pretrained(folder)
            config.text_config.num_hidden_layers = config.vision_config.depth = 2
            if hasattr(config.text_config, "layer_types"):
                config.text_config.layer_types = config.text_config.layer_types[:2]
            AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
            family = next(each for each in get_args(Family) if model_type.removesuffix("_moe") == each)
            renderer = Renderer.from_pretrained(folder, family)
            batches = {}
            for kind, item in rendered(renderer, shown).items():
                batch = collate([item], renderer)
                unsupervised = ~torch.tensor([item.supervised])
                labels = batch["input_ids"].masked_fill(unsupervised, IGNORED)
                batches[kind] = batch | {"supervised_labels": labels}
            made[model_type] = (folder, batches)
        return made[model_type]

    return of


def sharded(checkpoint: Path, trained: Trained, sharding: Sharding) -> Any:
    model: Any = load_model(
        checkpoint, freeze_vision_tower=not trained.tower, freeze_merger=not trained.merger
    )
    if not trained.language_model:
        model.requires_grad_(False)
    add_supervised_head(model)
    if trained.lora:
        model = with_lora(model, LoraConfig(rank=2, target_modules=trained.lora), seed=0)
    if trained.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shard(model, sharding, torch.device("cpu"))
    return model.train()


def step(
    model: Any, trained: Trained, batches: Sequence[dict[str, torch.Tensor]], issued: list[object]
) -> None:
    """Run a pass without gradients, and a step of several micro-batches."""
    with torch.no_grad(), adapters_off(model) if trained.lora else nullcontext():
        model(**batches[0])
    for number, batch in enumerate(batches if trained.language_model else ()):
        issued.append(f"micro-batch {number}")
        reduce_over_replicas(model, number == len(batches) - 1)
        loss = model(**batch).sum()
        issued.append("backward")
        loss.backward()
    model.zero_grad()


@pytest.mark.parametrize("sharding", get_args(Sharding))
@pytest.mark.parametrize(("model_type", "trains"), CASES)
def test_ranks_with_unlike_batches_issue_the_same(
    model_type: TinyType,
    trains: str,
    sharding: Sharding,
    make: Callable[[TinyType], Any],
    issued: list[object],
) -> None:
    checkpoint, batches = make(model_type)
    trained = TRAINED[trains]
    model = sharded(checkpoint, trained, sharding)
    tower = vision_backbone(model).visual
    shared_out = any(isinstance(module, FSDPModule) for module in tower.modules())
    assert shared_out == (trained.tower or trained.lora == EVERYWHERE)
    step(model, trained, [batches["text"]], issued)  # what has been gathered once may stay
    found = {}
    for kind, after in zip(KINDS, KINDS[1:] + KINDS[:1], strict=True):
        issued.clear()
        step(model, trained, [batches[kind], batches[after]], issued)
        found[kind] = list(issued)
    operations = {each[0] for each in issued if isinstance(each, tuple)}
    of_gradients = {"reduce_scatter_single" if sharding == "fsdp2" else "all_reduce"}
    of_weights = {"all_gather_single"} if sharding == "fsdp2" else set()
    assert operations >= of_weights | (of_gradients if trained.language_model else set())
    for kind, listed in found.items():
        assert listed == found["text"], kind
