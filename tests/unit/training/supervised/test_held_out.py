"""The held-out loss of an sft stage: the one that transformers computes, whatever the batches."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from transformers import AutoModelForImageTextToText

from posttrain.config import ConfigError, Document, RunConfig, build_run
from posttrain.data.formats import DataError, read_canonical
from posttrain.models.load import load_model
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import add_supervised_head
from posttrain.objectives.sft import EXPONENTS, Normalization, sft_loss
from posttrain.quickstart import marker_scenes
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.tools import tool_specs
from posttrain.run.directory import RunDir
from posttrain.training.core.distributed import sum_over_ranks
from posttrain.training.supervised.batches import model_inputs
from posttrain.training.supervised.sft import held_out_dialogues, samples_of, sft_worker
from posttrain.viewer import write_report
from tests.stage_jobs import job_of
from tests.unit.ranks import on_two_ranks

HELD_OUT = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dialogues to learn from, and others with one and two images, texts alone and of many lengths."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "datasets_cfg").mkdir()
    for name in ("scenes", "held"):
        (folder / name).mkdir()
        told = {
            "name": name,
            "description": "d",
            "licence": "MIT",
            "source": {"path": f"../{name}/data.jsonl"},
        }
        (folder / "datasets_cfg" / f"{name}.yaml").write_text(yaml.safe_dump(told))
    marker_scenes.write(folder / "scenes", kind="list", split="sft", count=8)
    marker_scenes.write(folder / "held", kind="zoom", split="sft", count=HELD_OUT)
    return folder


def config_of(checkpoint: Path, folder: Path, output: Path, **stage: Any) -> RunConfig:
    data = {"mixture": {"scenes": 1.0}} | stage.pop("data", {})
    settings = {"stage": "sft", "max_steps": 5, "eval_dataset": "held", "logging_steps": 1, "data": data}
    model = {"name_or_path": str(checkpoint), "dtype": "float32"}
    run = {"name": "test", "output_dir": str(output), "base_dir": str(folder), "model": model}
    return RunConfig.model_validate(run | {"stages": [settings | stage]})


def measured(config: RunConfig, checkpoint: Path) -> dict[int, dict[str, float]]:
    """Train the stage in this process; return the figures of held-out rows by step."""
    run = RunDir.create(config, resume=False)
    sft_worker(job_of(config, run, checkpoint))
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "eval_loss" in row}


def by_transformers(checkpoint: Path, folder: Path, normalization: Normalization) -> float:
    """The loss of the held-out rows one by one, by transformers' forward pass, weighted by the definition."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32").eval()
    renderer = Renderer.from_pretrained(checkpoint, "qwen3_vl")
    above = below = 0.0
    for sample in read_canonical(folder / "held" / "data.jsonl"):
        item = renderer.render(sample.messages, tools=tool_specs(sample))
        batch = collate([item], renderer)
        labels = batch["input_ids"].masked_fill(~torch.tensor([item.supervised]), -100)
        with torch.no_grad():
            mean = model(**batch, labels=labels).loss.item()
        tokens = sum(item.supervised[1:])
        above += mean * tokens * tokens ** -EXPONENTS[normalization]
        below += tokens ** (1 - EXPONENTS[normalization])
    return above / below


@pytest.mark.parametrize("normalization", ["token", "sqrt", "sample"])
@pytest.mark.parametrize("batches", [{"size": 1}, {"size": 3}, {"size": 8}, {"packing": True}])
def test_it_is_the_loss_that_transformers_computes(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, normalization: Any, batches: dict[str, Any]
) -> None:
    data = {"packing": True, "max_length": 300} if "packing" in batches else {}
    stage = {"per_device_batch_size": batches.get("size", 2), "data": data, "max_steps": 1}
    loss = {"normalization": normalization}
    found = measured(config_of(tiny_checkpoint, folder, tmp_path, loss=loss, **stage), tiny_checkpoint)
    assert found[0]["eval_loss"] == pytest.approx(
        by_transformers(tiny_checkpoint, folder, normalization), rel=1e-5
    )
    assert found[0]["eval_left_out"] == 0
    assert found[1]["eval_loss"] != found[0]["eval_loss"]


def of_two_ranks(rank: int, checkpoint: Path, folder: Path, output: Path) -> None:
    """Measure on two ranks, padded and packed; seven rows cannot be shared evenly."""
    dist.init_process_group("gloo", init_method=f"file://{output}/store", rank=rank, world_size=2)
    found = []
    for data in ({}, {"packing": True, "max_length": 300}):
        config = config_of(checkpoint, folder, output, num_workers=2, per_device_batch_size=2, data=data)
        parts: Any = SimpleNamespace(
            renderer=Renderer.from_config(str(checkpoint), config.model),
            model=load_model(checkpoint, dtype="float32").eval(),
            use_gpu=False,
        )
        add_supervised_head(parts.model)
        if data:
            use_packed_attention(parts.model)
        stage: Any = config.stages[0]
        held_out = held_out_dialogues(config, stage, parts)
        assert held_out is not None
        total, batches = torch.zeros(1, dtype=torch.float64), 0
        for batch in held_out.micro_batches():
            with torch.no_grad():
                logprobs = parts.model(**model_inputs(batch), supervised_labels=batch["labels"])
            total += sft_loss(logprobs.double(), samples_of(batch), 1.0, "token")
            batches += 1
        counts = sum_over_ranks(torch.tensor([batches]))
        loss = sum_over_ranks(total) / held_out.normalizer("token")
        found.append((loss.item(), batches * 2 == counts.item()))
    dist.destroy_process_group()
    if rank == 0:
        torch.save(found, output / "found.pt")


def test_two_ranks_measure_what_one_does(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    on_two_ranks(of_two_ranks, tiny_checkpoint, folder, tmp_path)
    expected = by_transformers(tiny_checkpoint, folder, "token")
    for loss, as_many_batches in torch.load(tmp_path / "found.pt"):
        assert loss == pytest.approx(expected, rel=1e-5)
        assert as_many_batches


def test_it_is_measured_before_on_the_way_and_at_the_end(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_checkpoint, folder, tmp_path, eval_steps=2, learning_rate=1e-3)
    found = measured(config, tiny_checkpoint)
    assert list(found) == [0, 2, 4, 5]
    assert found[5]["eval_loss"] < found[0]["eval_loss"]
    run = RunDir.create(config, resume=True)
    page = write_report(run.path).read_text("utf-8")
    assert "eval loss" in page or "eval_loss" in page


def test_adapters_are_measured_too_and_resuming_measures_nothing_twice(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_checkpoint, folder, tmp_path, lora={"rank": 2}, max_steps=4, save_steps=2)
    run = RunDir.create(config, resume=False)
    for until in (2, 4):
        sft_worker(job_of(config, run, tiny_checkpoint, until=until))
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 4]
    assert rows[0]["eval_loss"] == pytest.approx(by_transformers(tiny_checkpoint, folder, "sqrt"), rel=1e-5)


def test_long_dialogues_are_left_out_and_counted(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    rows = read_canonical(folder / "held" / "data.jsonl")
    lengths = sorted(len(renderer.render(row.messages, tools=tool_specs(row)).token_ids) for row in rows)
    config = config_of(tiny_checkpoint, folder, tmp_path, data={"max_length": lengths[-1] - 1}, max_steps=1)
    longest = sum(length == lengths[-1] for length in lengths)
    assert measured(config, tiny_checkpoint)[0]["eval_left_out"] == longest
    config = config_of(tiny_checkpoint, folder, tmp_path / "none", data={"max_length": 10}, max_steps=1)
    with pytest.raises(
        DataError, match=r"dataset held: every row has more tokens than data\.max_length = 10"
    ):
        measured(config, tiny_checkpoint)


def test_eval_steps_need_something_to_measure() -> None:
    stage = {"stage": "sft", "max_steps": 1, "data": {"mixture": {"scenes": 1.0}}, "eval_steps": 2}
    data = {"name": "x", "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}, "stages": [stage]}
    with pytest.raises(ConfigError, match="there are no held-out rows to measure"):
        build_run(Document(data, "x.yaml"))
    data["stages"] = [stage | {"eval_dataset": "held"}]
    uses = build_run(Document(data, "x.yaml")).datasets()
    assert [(use.name, use.use, use.key[-1]) for use in uses][-1] == ("held", "dialogues", "eval_dataset")
