import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl.trainer.sft_trainer import SFTTrainer

from posttrain.config import RunConfig, SftStage
from posttrain.data import marker_scenes
from posttrain.data.rendering import Renderer
from posttrain.data.sources import Dataset as Samples
from posttrain.data.sources import Mixture
from posttrain.models.load import load_model
from posttrain.run_dir import RunDir
from posttrain.training.sft import IGNORED, MixtureCollator, SupervisedTrainer, training_arguments


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    datasets = {}
    for kind in ("zoom", "list"):
        directory = tmp_path_factory.mktemp(kind)
        marker_scenes.write(directory, kind=kind, split="sft", count=6, sloppiness=0.5)
        datasets[kind] = Samples(directory / "data.jsonl")
    return Mixture(datasets, {"zoom": 0.5, "list": 0.5}, seed=0)


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")


@pytest.fixture(scope="module")
def batch(mixture: Mixture, renderer: Renderer) -> dict[str, torch.Tensor]:
    return MixtureCollator(mixture, renderer, max_length=256)([{"draw": i} for i in range(4)])


def trainer(
    kind: type[SFTTrainer], tiny_checkpoint: Path, renderer: Renderer, tmp_path: Path, **extra: Any
) -> Any:
    stage = SftStage.model_validate(
        {"stage": "sft", "data": {"mixture": {"zoom": 1.0}}, "max_steps": 1, "per_device_batch_size": 4}
    )
    config = RunConfig.model_validate(
        {
            "name": "test",
            "model": {"name_or_path": str(tiny_checkpoint), "dtype": "float32"},
            "stages": [stage.model_dump(exclude_unset=True)],
        }
    )
    return kind(
        model=load_model(tiny_checkpoint, dtype="float32"),
        args=training_arguments(config, stage, tmp_path, steps=1),
        data_collator=lambda rows: {},
        train_dataset=Dataset.from_dict({"draw": range(4)}),
        processing_class=renderer.processor,
        **extra,
    )


def ours(normalization: str, tiny_checkpoint: Path, renderer: Renderer, tmp_path: Path) -> SupervisedTrainer:
    extra = {"normalization": normalization, "run": RunDir(tmp_path), "stage_name": "sft"}
    return trainer(SupervisedTrainer, tiny_checkpoint, renderer, tmp_path, **extra)


def loss_and_gradient(trainer: Any, pieces: list[dict[str, torch.Tensor]]) -> tuple[float, torch.Tensor]:
    items = trainer._get_num_items_in_batch(pieces, torch.device("cpu"))
    total = 0.0
    for piece in pieces:
        loss = trainer.compute_loss(trainer.model, dict(piece), num_items_in_batch=items)
        loss.backward()
        total += loss.item()
    gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return total, torch.cat(gradients)


def test_token_normalisation_is_trls_own_loss(
    tiny_checkpoint: Path, renderer: Renderer, tmp_path: Path, batch: dict[str, torch.Tensor]
):
    theirs = loss_and_gradient(trainer(SFTTrainer, tiny_checkpoint, renderer, tmp_path), [batch])
    mine = loss_and_gradient(ours("token", tiny_checkpoint, renderer, tmp_path), [batch])
    assert mine[0] == pytest.approx(theirs[0], rel=1e-6)
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("normalization", ["sqrt", "token", "sample"])
def test_the_loss_is_its_definition_in_float64(
    tiny_checkpoint: Path,
    renderer: Renderer,
    tmp_path: Path,
    batch: dict[str, torch.Tensor],
    normalization: str,
):
    loss, _ = loss_and_gradient(ours(normalization, tiny_checkpoint, renderer, tmp_path), [batch])
    model: Any = load_model(tiny_checkpoint, dtype="float32").double()
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        logprobs = model(**inputs).logits.log_softmax(-1)
    power = {"sqrt": 0.5, "token": 0.0, "sample": 1.0}[normalization]
    numerator = denominator = 0.0
    for row, labels in enumerate(batch["labels"].tolist()):
        places = [place for place, label in enumerate(labels) if label != IGNORED]
        losses = [-logprobs[row, place - 1, labels[place]].item() for place in places]
        numerator += math.fsum(losses) / len(places) ** power
        denominator += len(places) ** (1 - power)
    assert loss == pytest.approx(numerator / denominator, rel=1e-5)


@pytest.mark.parametrize("normalization", ["sqrt", "token", "sample"])
def test_micro_batches_change_nothing(
    tiny_checkpoint: Path, renderer: Renderer, tmp_path: Path, mixture: Mixture, normalization: str
):
    collate = MixtureCollator(mixture, renderer, max_length=256)
    rows = [{"draw": i} for i in range(4)]
    whole = loss_and_gradient(ours(normalization, tiny_checkpoint, renderer, tmp_path), [collate(rows)])
    pieces = [collate([row]) for row in rows]
    split = loss_and_gradient(ours(normalization, tiny_checkpoint, renderer, tmp_path), pieces)
    assert split[0] == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(split[1], whole[1], rtol=1e-4, atol=1e-6)


def test_a_sample_that_is_too_long_is_refused_by_name(mixture: Mixture, renderer: Renderer):
    with pytest.raises(ValueError, match=r"sft-.*tokens are more than data.max_length = 20"):
        MixtureCollator(mixture, renderer, max_length=20)([{"draw": 0}])
