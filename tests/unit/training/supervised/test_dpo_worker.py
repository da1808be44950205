"""The stage's worker on the tiny real model: it learns, measures held-out pairs, and resumes exactly."""

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from posttrain.config import RunConfig
from posttrain.data.formats import write_canonical
from posttrain.media.images import save_image
from posttrain.models.lora import base_of, is_adapter
from posttrain.quickstart import marker_scenes
from posttrain.run.directory import RunDir
from posttrain.training.pipeline import standalone
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.dpo import dpo_worker
from posttrain.types import Block, Message, Sample, text_message
from tests.stage_jobs import job_of

HELD_OUT = 7


def write_pairs(folder: Path, name: str, split: marker_scenes.Split, count: int) -> None:
    """Pairs whose preferred answers have letters from the first half of the alphabet, on other scenes."""
    (folder / name).mkdir(parents=True)
    samples = []
    for index, scene in enumerate(itertools.islice(marker_scenes.scene_stream(split, 3), count)):
        image = Block("image", image=save_image(scene.draw(), folder / name))
        text = Block("text", text="Which letter is on the red marker?")
        rng = random.Random(f"{split}-{index}")
        chosen, rejected = ("".join(rng.choices(letters, k=3)) for letters in ("ABCDEF", "UVWXYZ"))
        samples.append(
            Sample(
                f"p{index}",
                (Message("user", (image, text) if index % 4 else (text,)),),
                chosen=(text_message("assistant", chosen),),
                rejected=(text_message("assistant", rejected),),
            )
        )
    write_canonical(samples, folder / name / "data.jsonl")
    (folder / "datasets_cfg").mkdir(exist_ok=True)
    dataset = {"name": name, "description": "pairs", "licence": "MIT"}
    dataset["source"] = {"path": f"../{name}/data.jsonl"}  # pyright: ignore[reportArgumentType]
    (folder / "datasets_cfg" / f"{name}.yaml").write_text(yaml.safe_dump(dataset))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, "pairs", "train", 24)
    write_pairs(folder, "held", "test", HELD_OUT)
    return folder


def work(checkpoint: Path, folder: Path, output: Path, **stage: Any) -> StageJob[Any]:
    settings = {
        "stage": "dpo",
        "data": {"mixture": {"pairs": 1.0}},
        "eval_dataset": "held",
        "per_device_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
    }
    config = RunConfig.model_validate(
        {
            "name": "test",
            "output_dir": str(output),
            "base_dir": str(folder),
            "model": {"name_or_path": str(checkpoint), "dtype": "float32", "family": "qwen3_vl"},
            "stages": [settings | stage],
        }
    )
    return job_of(config, RunDir.create(config, resume=True), checkpoint)


def weights(run: RunDir, step: int) -> dict[str, torch.Tensor]:
    return load_file(next((run.path / "dpo" / f"checkpoint-{step}").glob("*.safetensors")))


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param({"learning_rate": 1e-3}, id="full"),
        pytest.param({"learning_rate": 5e-3, "lora": {"rank": 4}}, id="lora"),
    ],
)
def test_it_learns_what_is_preferred_and_resumes_exactly(tiny_checkpoint, folder, tmp_path, stage):
    given = work(tiny_checkpoint, folder, tmp_path, **stage)
    dpo_worker(given)
    run = given.run
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    held_out = [(row["step"], row["eval_rewards/margins"], row["eval_rewards/accuracies"])
                for row in rows if "eval_loss" in row]  # fmt: skip
    (first, margin_before, accuracy_before), (last, margin, accuracy) = held_out
    assert (first, last) == (0, 4)  # 24 pairs, each once, 6 a step
    assert (margin_before, accuracy_before) == (0, 0)
    assert margin > 0.5
    assert accuracy == 1
    preferred = [row["eval_preferred"] for row in rows if "eval_loss" in row]
    assert preferred[0] < preferred[1]  # by likelihood it means something before the first step, too
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert rows[-2]["rewards/margins"] > rows[1]["rewards/margins"]

    whole = weights(run, 4)
    shutil.rmtree(run.path / "dpo" / "checkpoint-4")
    again = work(tiny_checkpoint, folder, tmp_path, **stage)
    assert again.resume is not None
    assert again.resume.name == "checkpoint-2"
    dpo_worker(again)
    resumed = weights(run, 4)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    final = run.path / "dpo" / "checkpoint-4"
    assert is_adapter(final) == ("lora" in stage)
    merged = standalone(final, run.path / "dpo" / "merged" / "checkpoint-4")
    assert (merged / "config.json").is_file()
    assert merged == (run.path / "dpo" / "merged" / "checkpoint-4" if "lora" in stage else final)
    if "lora" in stage:
        assert base_of(final) == str(tiny_checkpoint)
