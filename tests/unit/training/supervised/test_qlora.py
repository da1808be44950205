"""Adapters over weights in 4 and 8 bits: what is quantised, that both stages train, what is left behind."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from posttrain.config import RunConfig
from posttrain.data.formats import write_canonical
from posttrain.models import load
from posttrain.models.load import LoadError, load_model
from posttrain.models.lora import base_of, is_adapter, load_merged
from posttrain.quickstart import marker_scenes
from posttrain.run.directory import RunDir
from posttrain.types import Sample, text_message
from tests.stage_jobs import job_of, worker_of

STEPS = 4

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra qlora)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "sft").mkdir()
    marker_scenes.write(folder / "sft", kind="list", split="sft", count=8)
    (folder / "dpo").mkdir()
    asked = text_message("user", "Which letter?")
    pairs = [
        Sample(
            f"p{letter}",
            (asked,),
            chosen=(text_message("assistant", f"{letter} A"),),
            rejected=(text_message("assistant", f"{letter} Z"),),
        )
        for letter in "ABCDEFGH"
    ]
    write_canonical(pairs, folder / "dpo" / "data.jsonl")
    for name in ("sft", "dpo"):
        dataset = {"name": name, "description": "Scenes.", "licence": "CC0-1.0"}
        dataset["source"] = {"path": f"{name}/data.jsonl"}  # pyright: ignore[reportArgumentType]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(dataset))
    return folder


@needs_bitsandbytes
@pytest.mark.parametrize(("kind", "quantization"), [("sft", "nf4"), ("dpo", "nf4"), ("sft", "int8")])
def test_a_stage_trains_adapters_over_quantised_weights(
    tiny_checkpoint, folder, tmp_path, kind, quantization
):
    stage: dict[str, Any] = {
        "stage": kind,
        "data": {"mixture": {f"{kind}.yaml": 1.0}},
        "lora": {"rank": 4, "quantization": quantization},
        "max_steps": STEPS,
        "per_device_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "gradient_checkpointing": kind == "sft",
    }
    config = RunConfig.model_validate(
        {
            "name": "test",
            "output_dir": str(tmp_path),
            "base_dir": str(folder),
            "model": {"name_or_path": str(tiny_checkpoint), "dtype": "float32"},
            "stages": [stage],
            "trackers": [],
        }
    )
    run = RunDir.create(config, resume=False)
    worker_of(config.stages[0])(job_of(config, run, tiny_checkpoint))
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == STEPS
    assert losses[-1] < 0.85 * losses[0]

    final = run.newest_checkpoint(kind)
    assert final is not None
    assert is_adapter(final)
    assert base_of(final) == str(tiny_checkpoint)
    assert all("lora_" in name for name in load_file(final / "adapter_model.safetensors"))
    merged, start = load_merged(final), load_merged(tiny_checkpoint)
    changed = {
        name
        for (name, new), old in zip(merged.named_parameters(), start.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert all(".language_model.layers." in name and name.endswith("proj.weight") for name in changed)
    assert len(changed) == 7 * 4  # linear layers of a block × blocks: the others are as they were


@needs_bitsandbytes
@pytest.mark.parametrize(("quantization", "bits"), [("nf4", 4), ("int8", 8)])
def test_only_the_language_models_linear_layers_are_quantised(tiny_checkpoint, quantization, bits):
    plain = load_model(tiny_checkpoint, dtype="float32")
    model = load_model(tiny_checkpoint, dtype="float32", quantization=quantization)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantised = {name for name, module in linear.items() if type(module) is not torch.nn.Linear}
    assert quantised == {name for name in linear if ".language_model.layers." in name}
    ids = torch.arange(300, 340)[None]
    with torch.no_grad():
        expected, found = plain.eval()(ids).logits, model.eval()(ids).logits
    gap = (found - expected).abs().mean() / expected.abs().mean()
    assert 1e-5 < gap < {4: 0.2, 8: 0.03}[bits]


def test_without_bitsandbytes_the_extra_is_named(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"nf4 needs bitsandbytes: pip install 'posttrain\[qlora\]'"):
        load_model(tiny_checkpoint, dtype="float32", quantization="nf4")
