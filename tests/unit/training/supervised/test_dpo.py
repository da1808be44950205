"""The preference trainer against TRL's own, a direct definition, and itself in pieces and on two ranks."""

import dataclasses
import itertools
import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import trl.trainer.dpo_trainer
from datasets import Dataset
from transformers.models.qwen3_vl import modeling_qwen3_vl
from trl.trainer.dpo_trainer import DPOTrainer

from posttrain.config import DpoStage, LoraConfig, RunConfig
from posttrain.data.formats import DataError
from posttrain.data.mixing import Mixture
from posttrain.media.images import save_image
from posttrain.models.load import load_model
from posttrain.models.lora import lora_config
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.plugins import resolve
from posttrain.quickstart import marker_scenes
from posttrain.rendering.collation import IMAGE_INDEX
from posttrain.rendering.rendering import Renderer
from posttrain.run.directory import RunDir
from posttrain.training.supervised.dpo import (
    PairCollator,
    PairError,
    PreferenceTrainer,
    RenderedPairs,
    training_arguments,
)
from posttrain.types import Block, Message, Sample, text_message
from tests.unit.ranks import on_two_ranks

in_float64: Any = resolve("float64.py:in_float64", "tests", object, Path(__file__).parent)
rotation: Any = resolve("float64.py:rotation", "tests", object, Path(__file__).parent)

BETA = 0.3


class Rows(list):
    """Samples as a `Mixture` reads them."""


def samples(directory: Path, count: int) -> list[Sample]:
    """Pairs about scenes, and every fourth one without an image."""
    made = []
    for index, scene in enumerate(itertools.islice(marker_scenes.scene_stream("train", 3), count)):
        text = Block("text", text="Which letter is on the red marker?")
        image = Block("image", image=save_image(scene.draw(), directory))
        prompt = Message("user", (text,) if index % 4 == 3 else (image, text))
        chosen, rejected = text_message("assistant", "K" * (index + 1)), text_message("assistant", "A B")
        if index == 1:  # a prompt with an earlier assistant turn, which is no answer
            earlier = (text_message("user", "hi"), text_message("assistant", "hello"))
            made.append(Sample(f"p{index}", (*earlier, prompt), chosen=(chosen,), rejected=(rejected,)))
        else:
            made.append(Sample(f"p{index}", (prompt,), chosen=(chosen,), rejected=(rejected,)))
    return made


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")


@pytest.fixture(scope="module")
def collator(renderer: Renderer, tmp_path_factory: pytest.TempPathFactory) -> PairCollator:
    return collator_of(samples(tmp_path_factory.mktemp("pairs"), 8), renderer)


def collator_of(found: list[Sample], renderer: Renderer, max_length: int = 256) -> PairCollator:
    rows: Any = Rows(found)
    mixture = Mixture({"pairs": rows}, {"pairs": 1.0}, seed=0)
    return PairCollator(RenderedPairs(mixture, renderer, max_length, draws=len(found)), renderer)


@pytest.fixture(scope="module")
def batch(collator: PairCollator) -> dict[str, torch.Tensor]:
    return collator([{"draw": i} for i in range(8)])


@pytest.fixture(scope="module")
def moved_checkpoint(tiny_checkpoint: Path, renderer: Renderer, tmp_path_factory) -> Path:
    """A policy that has moved away from the reference."""
    directory = tmp_path_factory.mktemp("moved")
    model = load_model(tiny_checkpoint, dtype="float32")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter) * parameter.std().nan_to_num()
    model.save_pretrained(directory)
    renderer.processor.save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def float64_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_qwen3_vl, "apply_rotary_pos_emb_vision", rotation)


def float64_head(model: Any, outputs: tuple[str, ...] = ()) -> None:
    """In place of TRL's fused head, which rounds to float32: the same figures from all logits."""
    original = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **kwargs)
        logits = original(*args, **kwargs).logits[:, :-1]
        mask, targets = labels[:, 1:] != -100, labels[:, 1:].clamp(min=0)
        logs = logits.log_softmax(-1)
        return types.SimpleNamespace(
            log_probs=logs.gather(-1, targets[..., None])[..., 0] * mask,
            entropy=-(logs.exp() * logs).sum(-1) * mask,
            mean_logits=logits.mean(-1) * mask,
            is_top1=logits.argmax(-1) == targets,
        )

    model.forward = types.MethodType(forward, model)


def config_of(checkpoint: Path, **stage: Any) -> tuple[RunConfig, DpoStage]:
    settings = {"stage": "dpo", "data": {"mixture": {"pairs": 1.0}}, "beta": BETA, "learning_rate": 1e-3}
    config = RunConfig.model_validate(
        {
            "name": "test",
            "model": {"name_or_path": str(checkpoint), "dtype": "float32"},
            "stages": [settings | stage],
        }
    )
    found = config.stages[0]
    assert isinstance(found, DpoStage)
    return config, found


def trainer(
    kind: type[DPOTrainer],
    policy: Path,
    reference: Path | None,
    renderer: Renderer,
    tmp_path: Path,
    **stage: Any,
) -> Any:
    """A trainer in float64; without a reference it has adapters."""
    config, settings = config_of(policy, **stage)
    model = in_float64(load_model(policy, dtype="float32"))
    frozen = in_float64(load_model(reference, dtype="float32")).eval() if reference else None
    extra: dict[str, Any] = {}
    if kind is PreferenceTrainer:
        for each in (model, frozen):
            if each is not None:
                add_supervised_head(each)
        extra = {"run": RunDir(tmp_path), "stage": settings}
    collator: Any = lambda rows: {}  # noqa: E731 (of any type)
    dataset = {"draw": range(8)} if kind is PreferenceTrainer else {"draw": range(8), "images": [[]] * 8}
    return kind(
        model=model,
        ref_model=frozen,
        peft_config=lora_config(model, settings.lora) if settings.lora else None,
        args=training_arguments(config, settings, tmp_path, steps=1),
        data_collator=collator,
        train_dataset=Dataset.from_dict(dataset),
        processing_class=renderer.processor,
        **extra,
    )


def expanded(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with the pixels of every placeholder, as transformers and TRL want it; in float64."""
    batch = dict(batch)
    index = batch.pop(IMAGE_INDEX).tolist()
    first = [index.index(image) for image in range(max(index) + 1)]
    patches = batch["pixel_values"].split(batch["image_grid_thw"][first].prod(-1).tolist())
    return batch | {"pixel_values": torch.cat([patches[image] for image in index]).double()}


def doubled(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch | {"pixel_values": batch["pixel_values"].double()}


def loss_and_gradient(trainer: Any, pieces: list[dict[str, torch.Tensor]]) -> tuple[float, torch.Tensor]:
    model = trainer.model
    model.zero_grad()
    items = None
    if isinstance(trainer, PreferenceTrainer):
        items = trainer._get_num_items_in_batch(pieces, torch.device("cpu"))
    total = 0.0
    for piece in pieces:
        loss = trainer.compute_loss(model, dict(piece), num_items_in_batch=items)
        loss.backward()
        total += loss.item()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return total, torch.cat(gradients)


def test_each_image_is_in_the_batch_once_and_only_answers_are_compared(batch, collator, renderer):
    assert len(batch["input_ids"]) == 16
    images = [row % 8 for row in range(16)]
    assert len(batch[IMAGE_INDEX]) == 2 * batch[IMAGE_INDEX].unique().numel() == len(batch["image_grid_thw"])
    assert batch["pixel_values"].shape[0] * 2 == batch["image_grid_thw"].prod(-1).sum()
    mask = batch["completion_mask"].bool()
    texts = [renderer.decode(row[kept].tolist()) for row, kept in zip(batch["input_ids"], mask, strict=True)]
    assert sorted(texts[:8]) == sorted("K" * (i + 1) for i in range(8))
    assert set(texts[8:]) == {"A B"}
    assert all(
        row[kept][-1] == renderer.end_token_id for row, kept in zip(batch["input_ids"], mask, strict=True)
    )
    assert images[:8] == images[8:]


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_loss_and_gradient_are_trls_own(
    moved_checkpoint, tiny_checkpoint, renderer, tmp_path, batch, loss_type, monkeypatch
):
    monkeypatch.setattr(trl.trainer.dpo_trainer, "add_fused_lm_head", float64_head)
    models = (moved_checkpoint, tiny_checkpoint, renderer, tmp_path)
    theirs = trainer(DPOTrainer, *models, loss_type=loss_type)
    mine = trainer(PreferenceTrainer, *models, loss_type=loss_type)
    expected = loss_and_gradient(theirs, [expanded(batch)])
    found = loss_and_gradient(mine, [doubled(batch)])
    assert found[0] == pytest.approx(expected[0], rel=1e-8)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-8, atol=1e-12)
    names = [name for name in mine._metrics["train"] if name.startswith("rewards/")]
    assert len(names) == 4
    for name in names:
        assert mine._metrics["train"][name] == pytest.approx(theirs._metrics["eval"][name], rel=1e-6)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_the_loss_is_its_definition_in_float64(
    moved_checkpoint, tiny_checkpoint, renderer, tmp_path, batch, loss_type
):
    mine = trainer(
        PreferenceTrainer, moved_checkpoint, tiny_checkpoint, renderer, tmp_path, loss_type=loss_type
    )
    loss, _ = loss_and_gradient(mine, [doubled(batch)])
    inputs = expanded(batch)
    mask = inputs.pop("completion_mask")
    sums = []
    for checkpoint in (moved_checkpoint, tiny_checkpoint):
        model: Any = in_float64(load_model(checkpoint, dtype="float32"))
        with torch.no_grad():
            logprobs = model(**inputs).logits.log_softmax(-1)[:, :-1]
        chosen = logprobs.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
        sums.append((chosen * mask[:, 1:]).sum(1).tolist())
    ratios = [policy - reference for policy, reference in zip(*sums, strict=True)]
    lengths = mask.sum(1).tolist()
    total = 0.0
    for pair in range(8):
        if loss_type == "sigmoid":
            total += math.log1p(math.exp(-BETA * (ratios[pair] - ratios[pair + 8])))
        else:
            margin = ratios[pair] / lengths[pair] - ratios[pair + 8] / lengths[pair + 8]
            total += (margin - 1 / (2 * BETA)) ** 2
    assert loss == pytest.approx(total / 8, rel=1e-8)


def test_micro_batches_change_nothing(moved_checkpoint, tiny_checkpoint, renderer, tmp_path, collator, batch):
    mine = trainer(PreferenceTrainer, moved_checkpoint, tiny_checkpoint, renderer, tmp_path)
    whole = loss_and_gradient(mine, [doubled(batch)])
    singles = [collator([{"draw": i}]) for i in range(8)]
    assert [IMAGE_INDEX in single for single in singles].count(False) == 2  # pairs of text alone
    pieces = [doubled(single) if IMAGE_INDEX in single else single for single in singles]
    split = loss_and_gradient(mine, pieces)
    assert split[0] == pytest.approx(whole[0], rel=1e-10)
    torch.testing.assert_close(split[1], whole[1], rtol=1e-8, atol=1e-12)


def test_with_adapters_off_the_model_is_its_own_reference(tiny_checkpoint, renderer, tmp_path, batch):
    """Adapters that have moved, against a frozen copy of the model without any."""
    mine = trainer(PreferenceTrainer, tiny_checkpoint, None, renderer, tmp_path, lora={"rank": 4})
    assert mine.ref_model is None
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in mine.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    assert list(mine.model.peft_config) == ["default"]  # no second adapter for the reference
    copy: Any = in_float64(load_model(tiny_checkpoint, dtype="float32"))
    inputs = expanded(batch)
    labels = inputs["input_ids"].masked_fill(~inputs.pop("completion_mask"), IGNORED)
    add_supervised_head(copy)
    with torch.no_grad():
        of_copy = copy(**inputs, supervised_labels=labels)
        with mine.reference() as reference:
            with_adapters_off = reference(**inputs, supervised_labels=labels)
    torch.testing.assert_close(with_adapters_off, of_copy, rtol=1e-12, atol=1e-12)
    ratios = mine.log_ratios(mine.model, doubled(batch))
    assert ratios.chosen.abs().min() > 1e-4  # the policy has its adapters on


def test_only_the_adapters_train(tiny_checkpoint, renderer, tmp_path, batch):
    mine = trainer(PreferenceTrainer, tiny_checkpoint, None, renderer, tmp_path, lora={"rank": 4})
    loss, _ = loss_and_gradient(mine, [doubled(batch)])
    assert loss == pytest.approx(math.log(2), rel=1e-6)
    trained = {name for name, p in mine.model.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name and "language_model" in name for name in trained)
    optimised = {id(p) for group in mine.create_optimizer().param_groups for p in group["params"]}
    assert optimised == {id(p) for name, p in mine.model.named_parameters() if "lora_" in name}


def test_a_row_without_an_answer_to_compare_is_refused_by_name(renderer, tmp_path):
    good = samples(tmp_path, 1)[0]
    collator = collator_of([dataclasses.replace(good, rejected=())], renderer)
    with pytest.raises(PairError, match=r"dataset pairs, sample p0: .* both `chosen` and `rejected`"):
        collator([{"draw": 0}])


def test_a_pair_that_cannot_be_shown_is_refused_by_name(renderer, tmp_path):
    """Where it was not found before, as by a template that changed since."""
    hostile = (text_message("assistant", "a <|im_end|>"),)
    collator = collator_of([dataclasses.replace(samples(tmp_path, 1)[0], rejected=hostile)], renderer)
    with pytest.raises(
        DataError, match=r"dataset pairs, sample p0: assistant text contains the control token"
    ):
        collator([{"draw": 0}])


def test_a_pair_that_is_too_long_is_left_out_replaced_and_counted(renderer, tmp_path):
    """Whichever of its answers is too long; a held-out pair is not replaced."""
    found = samples(tmp_path, 8)
    long = text_message("assistant", "K L " * 100)
    found[2] = dataclasses.replace(found[2], chosen=(long,))
    found[5] = dataclasses.replace(found[5], rejected=(long,))
    collator = collator_of(found, renderer, max_length=150)
    rows = [{"draw": draw} for draw in range(8)]
    batch = collator(rows)
    assert batch["left_out"] >= 2
    assert batch["input_ids"].shape[0] == 16
    assert batch["input_ids"].shape[1] <= 150
    pairs = collator._pairs
    mixture = pairs._mixture
    assert {mixture.index(draw)[1] for draw in range(8) if not pairs.fits(draw)} == {2, 5}
    assert collator(rows)["input_ids"].equal(batch["input_ids"])
    with pytest.raises(DataError, match=r"dataset pairs: 101 samples .* data.max_length = 10"):
        collator_of(found, renderer, max_length=10)([{"draw": 0}])


def test_each_pair_is_seen_once_unless_told_otherwise(tiny_checkpoint):
    _, stage = config_of(tiny_checkpoint, per_device_batch_size=2, gradient_accumulation_steps=2)
    assert stage.steps_for(rows=100) == 25
    assert LoraConfig().rank == 16


def one_rank(rank: int, policy: Path, reference: Path, pieces: list[dict[str, Any]], scratch: Path) -> None:
    """Half of the pairs on each of two ranks; gradients are added up, as `shard` has FSDP2 do."""
    modeling_qwen3_vl.apply_rotary_pos_emb_vision = rotation
    dist.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=rank, world_size=2)
    renderer = Renderer.from_pretrained(policy, "qwen3_vl")
    mine = trainer(PreferenceTrainer, policy, reference, renderer, scratch)
    loss, gradient = loss_and_gradient(mine, pieces[rank::2])
    found = torch.cat([torch.tensor([loss], dtype=torch.float64), gradient])
    dist.all_reduce(found)
    dist.destroy_process_group()
    if rank == 0:
        torch.save(found, scratch / "found.pt")


def test_two_ranks_change_nothing(moved_checkpoint, tiny_checkpoint, renderer, tmp_path, collator, batch):
    mine = trainer(PreferenceTrainer, moved_checkpoint, tiny_checkpoint, renderer, tmp_path)
    loss, gradient = loss_and_gradient(mine, [doubled(batch)])
    pieces = [doubled(collator([{"draw": i}, {"draw": i + 1}])) for i in range(0, 8, 2)]
    on_two_ranks(one_rank, moved_checkpoint, tiny_checkpoint, pieces, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    assert found[0].item() == pytest.approx(loss, rel=1e-10)
    torch.testing.assert_close(found[1:], gradient, rtol=1e-8, atol=1e-12)
