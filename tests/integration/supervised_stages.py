"""Small supervised stages and their data, for tests of what faults do to them."""

from pathlib import Path
from typing import Any

import yaml

from posttrain.config import RunConfig
from posttrain.quickstart import marker_scenes
from posttrain.run.directory import RunDir
from tests.unit.training.supervised.test_dpo_worker import write_pairs

#: Rows of metrics and checkpoints fall on different steps; some samples of `zoom` are too long.
SFT = {
    "stage": "sft",
    "data": {"mixture": {"zoom": 1.0}, "max_length": 110},
    "lora": {"rank": 4, "dropout": 0.1},
    "max_steps": 10,
    "per_device_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "save_steps": 4,
    "logging_steps": 3,
}
DPO = {
    "stage": "dpo",
    "data": {"mixture": {"pairs": 1.0}},
    "eval_dataset": "held",
    "eval_steps": 5,
    "max_steps": 8,
    "per_device_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "save_steps": 3,
    "logging_steps": 2,
}
TINY_MODEL = {
    "stage": "tiny_model",
    "max_steps": 9,
    "global_batch_size": 8,
    "num_workers": 1,
    "save_steps": 4,
    "logging_steps": 2,
}
PACKED = {
    "data": {"mixture": {"zoom": 1.0}, "max_length": 300, "packing": True},
    "lora": None,
    "optimizer": "muon",
    "gradient_accumulation_steps": 1,
    "num_workers": 2,
}
STAGES: dict[str, dict[str, Any]] = {
    "tiny_model": TINY_MODEL,
    "sft": SFT,
    "dpo": DPO,
    "sft on two ranks": SFT | PACKED,
}


def write_data(folder: Path) -> Path:
    """The datasets `zoom`, `pairs` and `held`."""
    write_pairs(folder, "pairs", "train", 24)
    write_pairs(folder, "held", "test", 5)
    (folder / "zoom").mkdir()
    marker_scenes.write(folder / "zoom", kind="zoom", split="sft", count=24, sloppiness=0.5)
    source = {"path": "../zoom/data.jsonl"}
    dataset = {"name": "zoom", "description": "scenes", "licence": "MIT", "source": source}
    (folder / "datasets_cfg" / "zoom.yaml").write_text(yaml.safe_dump(dataset))
    return folder


def config_of(folder: Path, output: Path, checkpoint: Path, stage: dict[str, Any]) -> RunConfig:
    """A run of one stage; `tiny_model` makes its own checkpoint."""
    given = {"name_or_path": str(checkpoint), "dtype": "float32", "family": "qwen3_vl"}
    return RunConfig.model_validate(
        {
            "name": "run",
            "output_dir": str(output),
            "base_dir": str(folder),
            "model": {} if stage["stage"] == "tiny_model" else given,
            "stages": [stage],
        }
    )


def begin(folder: Path, output: Path, checkpoint: Path, stage: dict[str, Any]) -> RunDir:
    """The directory of a run that has not done anything."""
    return RunDir.create(config_of(folder, output, checkpoint, stage), resume=False)
