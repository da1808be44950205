"""The supervised loss on the tiny real model: against TRL and float64, and what must not change it."""

import copy
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import trl.trainer.utils
from datasets import Dataset
from safetensors.torch import load_file
from transformers.models.qwen3_vl import modeling_qwen3_vl
from trl.trainer.sft_trainer import SFTTrainer

from posttrain.config import RunConfig, SftStage, SupervisedStage
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset as Samples
from posttrain.data.formats import DataError
from posttrain.data.mixing import Mixture
from posttrain.models.load import load_model
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.plugins import resolve
from posttrain.quickstart import marker_scenes
from posttrain.rendering.rendering import Renderer
from posttrain.run.directory import RunDir
from posttrain.training.supervised.batches import RankBatch
from posttrain.training.supervised.sft import SupervisedTrainer, sft_batches, sft_worker, training_arguments
from posttrain.training.supervised.stage_parts import StageParts
from tests.stage_jobs import job_of
from tests.unit.ranks import on_two_ranks

in_float64: Any = resolve("float64.py:in_float64", "tests", object, Path(__file__).parent)
rotation: Any = resolve("float64.py:rotation", "tests", object, Path(__file__).parent)

NORMALIZATIONS = ["sqrt", "token", "sample"]
SAMPLES = 8
#: Two to four samples of the mixture, of 71 to 122 tokens each.
ROW = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets: dialogues with one and with two images, and of different lengths."""
    folder = tmp_path_factory.mktemp("data")
    for kind in ("zoom", "list"):
        (folder / kind).mkdir()
        marker_scenes.write(folder / kind, kind=kind, split="sft", count=6, sloppiness=0.5)
    return folder


def stage_of(**keys: Any) -> SftStage:
    data = {"mixture": {"zoom": 0.5, "list": 0.5}} | keys.pop("data", {})
    return SftStage.model_validate({"stage": "sft", "max_steps": 1, "data": data} | keys)


def packed(**keys: Any) -> SftStage:
    return stage_of(data={"packing": True, "max_length": ROW}, per_device_batch_size=SAMPLES, **keys)


@pytest.fixture(autouse=True)
def float64_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_qwen3_vl, "apply_rotary_pos_emb_vision", rotation)


def config_of(checkpoint: Path, stage: SupervisedStage) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "test",
            "model": {"name_or_path": str(checkpoint), "dtype": "float32"},
            "stages": [stage.model_dump(exclude_unset=True)],
        }
    )


class Setup:
    """A trainer of a stage in float64, and the batches it would get."""

    def __init__(
        self, checkpoint: Path, folder: Path, scratch: Path, stage: SftStage, kind: Any = SupervisedTrainer
    ) -> None:
        self.stage: Any = stage
        config = config_of(checkpoint, stage)
        self.mixture = Mixture(
            {name: Samples(check_rows(folder / name / "data.jsonl")) for name in ("zoom", "list")},
            {"zoom": 0.5, "list": 0.5},
            seed=0,
        )
        renderer = Renderer.from_pretrained(checkpoint, "qwen3_vl")
        model = in_float64(load_model(checkpoint, dtype="float32"))
        parts = StageParts(renderer, model, self.mixture, 1, None)
        self.collator, self.draws = sft_batches(stage, parts, stage.global_batch_size)
        extra = {}
        if kind is SupervisedTrainer:
            add_supervised_head(model)
            extra = {"run": RunDir(scratch), "stage": stage}
        if stage.data.packing:
            use_packed_attention(model)
        self.trainer: Any = kind(
            model=model,
            args=training_arguments(config, stage, scratch, steps=1),
            data_collator=self.collator,
            train_dataset=Dataset.from_dict({"draw": range(SAMPLES)}),
            processing_class=renderer.processor,
            **extra,
        )

    def shares(self) -> list[RankBatch]:
        """What the trainer collects for its only step."""
        rows = [{"draw": draw} for draw in self.draws["draw"]]
        size = 1 if self.stage.data.packing else self.stage.per_device_batch_size
        return [self.collator(rows[start : start + size]) for start in range(0, len(rows), size)]


def step(setup: Setup) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of the step, by the trainer's own training_step."""
    shares = setup.shares()
    trainer = setup.trainer
    trainer.current_gradient_accumulation_steps = len(shares)
    items = trainer._get_num_items_in_batch(shares, torch.device("cpu"))
    trainer.optimizer = None
    loss = sum(trainer.training_step(trainer.model, share, items).item() for share in shares)
    named = trainer.model.named_parameters()
    return loss, {name: p.grad for name, p in named if p.grad is not None}


def assert_same(found: tuple[float, dict], expected: tuple[float, dict], tolerance: float = 1e-8) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        error = (found[1][name] - gradient).norm().item()
        assert error <= tolerance * gradient.norm().item() + 1e-14, name


class ExactHead:
    """TRL's fused head by its definition: the kernel itself works in float32."""

    @staticmethod
    def apply(hidden: torch.Tensor, weight: torch.Tensor, _bias: None, labels: torch.Tensor, *_: Any) -> Any:
        logs = (hidden @ weight.T).log_softmax(-1)
        nothing = torch.zeros(len(labels))
        return logs.gather(-1, labels[:, None])[:, 0], nothing, None, None, nothing


@pytest.mark.parametrize("exact", [True, False])
def test_token_normalisation_is_trls_own_loss(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    if exact:
        monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", ExactHead)
    stage = stage_of(per_device_batch_size=SAMPLES, loss={"normalization": "token"})
    mine = step(Setup(tiny_checkpoint, folder, tmp_path / "a", stage))
    setup = Setup(tiny_checkpoint, folder, tmp_path / "b", stage, kind=SFTTrainer)
    (share,) = setup.shares()
    (make,) = share["micro_batches"]
    trainer, batch = setup.trainer, make()
    trainer.optimizer, trainer.current_gradient_accumulation_steps = None, 1
    items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer.training_step(trainer.model, batch, items).item()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert_same(mine, (loss, gradients), 1e-8 if exact else 1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_loss_is_its_definition(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, normalization: str
) -> None:
    setup = Setup(tiny_checkpoint, folder, tmp_path, packed(loss={"normalization": normalization}))
    loss, _ = step(setup)
    model: Any = in_float64(load_model(tiny_checkpoint, dtype="float32"))
    power = {"sqrt": 0.5, "token": 0.0, "sample": 1.0}[normalization]
    numerator = denominator = 0.0
    padded = Setup(tiny_checkpoint, folder, tmp_path, stage_of(gradient_accumulation_steps=SAMPLES))
    for share in padded.shares():
        batch = share["micro_batches"][0]()
        labels = batch.pop("labels")[0].tolist()
        with torch.no_grad():
            logprobs = model(**batch).logits[0].log_softmax(-1)
        places = [place for place, label in enumerate(labels) if label != IGNORED]
        numerator -= math.fsum(logprobs[p - 1, labels[p]].item() for p in places) / len(places) ** power
        denominator += len(places) ** (1 - power)
    assert loss == pytest.approx(numerator / denominator, rel=1e-8)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_packing_and_micro_batches_change_nothing(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, normalization: str
) -> None:
    loss = {"normalization": normalization}
    whole = step(Setup(tiny_checkpoint, folder, tmp_path, stage_of(per_device_batch_size=SAMPLES, loss=loss)))
    assert sum(gradient.norm().item() for gradient in whole[1].values()) > 1
    eight = step(
        Setup(tiny_checkpoint, folder, tmp_path, stage_of(gradient_accumulation_steps=SAMPLES, loss=loss))
    )
    assert_same(eight, whole)
    rows = Setup(tiny_checkpoint, folder, tmp_path, packed(loss=loss))
    assert len(rows.shares()[0]["micro_batches"]) > 1
    assert_same(step(rows), whole)


def test_transformers_own_mask_for_packed_rows_gives_the_same(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    ours = step(Setup(tiny_checkpoint, folder, tmp_path, packed()))
    setup = Setup(tiny_checkpoint, folder, tmp_path, packed())
    setup.trainer.model.set_attn_implementation({"text_config": "sdpa"})
    assert_same(step(setup), ours)


def test_gradient_checkpointing_changes_nothing_with_a_frozen_tower(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    plain = step(Setup(tiny_checkpoint, folder, tmp_path, packed()))
    assert not any(".visual.blocks" in name for name in plain[1])
    assert any("merger" in name for name in plain[1])
    setup = Setup(tiny_checkpoint, folder, tmp_path, packed(gradient_checkpointing=True))
    arguments = setup.trainer.args
    setup.trainer.model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
    assert_same(step(setup), plain)


def one_rank(rank: int, checkpoint: Path, folder: Path, scratch: Path) -> None:
    """Half of the step on each of two ranks; gradients are added up, as `shard` has FSDP2 do."""
    modeling_qwen3_vl.apply_rotary_pos_emb_vision = rotation
    dist.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=rank, world_size=2)
    found = {}
    for normalization, packing in itertools.product(NORMALIZATIONS, [False, True]):
        keys: dict[str, Any] = {"loss": {"normalization": normalization}, "num_workers": 2}
        data = {"packing": True, "max_length": ROW} if packing else {}
        stage = stage_of(per_device_batch_size=SAMPLES // 2, data=data, **keys)
        setup = Setup(checkpoint, folder, scratch, stage)
        size = len(setup.draws) // 2
        if packing:
            setup.draws = setup.draws.select([rank])
        else:
            setup.draws = setup.draws.select(range(rank * size, (rank + 1) * size))
        loss, gradients = step(setup)
        for gradient in gradients.values():
            dist.all_reduce(gradient)
        total = torch.tensor(loss, dtype=torch.float64)
        dist.all_reduce(total)
        found[normalization, packing] = (total.item() / 2, gradients)
    dist.destroy_process_group()
    if rank == 0:
        torch.save(found, scratch / "found.pt")


def test_two_ranks_give_what_one_gives(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    on_two_ranks(one_rank, tiny_checkpoint, folder, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    for normalization in NORMALIZATIONS:
        stage = stage_of(per_device_batch_size=SAMPLES, loss={"normalization": normalization})
        whole = step(Setup(tiny_checkpoint, folder, tmp_path, stage))
        for packing in (False, True):
            assert_same(found[normalization, packing], whole)


def test_a_sample_that_is_too_long_is_left_out_and_counted(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    """The replaced draws are those of too long samples; each comes from the same dataset and fits."""
    plain = Setup(tiny_checkpoint, folder, tmp_path, stage_of(gradient_accumulation_steps=SAMPLES))
    samples = [plain.collator._draws.sample(draw)[0] for draw in range(SAMPLES)]  # type: ignore[union-attr]
    lengths = [len(sample.token_ids) for sample in samples]
    limit = sorted(lengths)[-3]
    for packing in (False, True):
        keys = {"data": {"max_length": limit, "packing": packing}, "per_device_batch_size": SAMPLES}
        setup = Setup(tiny_checkpoint, folder, tmp_path, stage_of(**keys))
        draws: Any = setup.collator._draws
        found = [draws.sample(draw) for draw in range(SAMPLES)]
        for draw, (rendered, left_out) in enumerate(found):
            assert len(rendered.token_ids) <= limit
            assert (left_out > 0) == (lengths[draw] > limit)
            if not left_out:
                assert rendered.token_ids == samples[draw].token_ids
        (share,) = setup.shares()
        assert share["left_out"] == sum(left_out for _, left_out in found) >= 1
        assert len(share["supervised"]) == SAMPLES
        setup.trainer._get_num_items_in_batch([share], torch.device("cpu"))
        setup.trainer.log({"loss": 1.0})
        assert setup.trainer.state.log_history[-1]["data/left_out"] == share["left_out"]


def test_a_dataset_of_nothing_but_long_samples_is_refused(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    setup = Setup(tiny_checkpoint, folder, tmp_path, stage_of(data={"max_length": 20}))
    with pytest.raises(DataError, match=r"dataset (zoom|list): 101 samples .* data.max_length = 20"):
        setup.shares()


def test_packed_training_steps_are_those_without_packing(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    """Three steps of the whole trainer, AdamW included."""
    states = []
    for number, stage in enumerate((packed(), stage_of(per_device_batch_size=SAMPLES))):
        setup = Setup(tiny_checkpoint, folder, tmp_path / str(number), stage)
        trainer = setup.trainer
        trainer.train_dataset = Dataset.from_dict({"draw": range(3 * len(setup.draws))})
        trainer.args.max_steps = 3
        trainer.args.save_strategy = "no"
        trainer.train()
        assert trainer.state.global_step == 3
        states.append(copy.deepcopy(trainer.model.state_dict()))
    torch.testing.assert_close(states[0], states[1], rtol=1e-7, atol=1e-9)


def test_a_packed_stage_resumes_where_it_was(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    """Four steps at once, the last two again from the middle, and with stops: the same weights."""
    source = {"path": str(folder / "zoom" / "data.jsonl")}
    dataset = {"name": "zoom", "description": "Scenes.", "licence": "CC0-1.0", "source": source}
    (tmp_path / "zoom.yaml").write_text(json.dumps(dataset))
    data = {"mixture": {"zoom.yaml": 1.0}, "packing": True, "max_length": ROW}
    loop = {"max_steps": 4, "save_steps": 2, "per_device_batch_size": 4, "learning_rate": 1e-3}
    config = RunConfig.model_validate(
        {
            "name": "packed",
            "output_dir": str(tmp_path / "runs"),
            "base_dir": str(tmp_path),
            "model": {"name_or_path": str(tiny_checkpoint), "dtype": "float32"},
            "stages": [{"stage": "sft", "data": data} | loop],
            "trackers": [],
        }
    )
    run = RunDir.create(config, resume=False)
    sft_worker(job_of(config, run, tiny_checkpoint))
    newest = run.newest_checkpoint("sft")
    assert newest is not None
    assert newest.name.endswith("4")
    first = load_file(newest / "model.safetensors")
    shutil.rmtree(newest)
    sft_worker(job_of(config, run, tiny_checkpoint))
    again = load_file(newest / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())

    stopped = RunDir.create(config.model_copy(update={"name": "stopped"}), resume=False)
    for until in (1, 3, 4):  # as for evaluations between epochs, in which checkpoints fall on other steps
        sft_worker(job_of(config, stopped, tiny_checkpoint, until=until))
        assert stopped.newest_checkpoint("sft") == stopped.path / "sft" / f"checkpoint-{until}"
    ours, whole = (directory / "sft" / "checkpoint-4" for directory in (stopped.path, run.path))
    assert (ours / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (ours / "state" / "trainer.json").read_bytes() == (whole / "state" / "trainer.json").read_bytes()
    states = [load_file(next((each / "state").glob("*.safetensors"))) for each in (ours, whole)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    start = load_file(tiny_checkpoint / "model.safetensors")
    assert any(not torch.equal(start[name], tensor) for name, tensor in first.items())
