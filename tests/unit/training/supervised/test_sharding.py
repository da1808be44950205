"""FSDP2 on two ranks: the losses of one, a checkpoint that is a whole model, and resuming from it.

accelerate shards over GPUs only; here the ranks are told that they have some. What runs then is the same code
on the CPU, over gloo.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate.state import DistributedType, PartialState
from safetensors.torch import load_file

from posttrain.config import RunConfig
from posttrain.models.export import export
from posttrain.models.load import load_model
from posttrain.quickstart import marker_scenes
from posttrain.run.directory import RunDir
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised import sft
from posttrain.training.supervised.sft import sft_worker
from tests.stage_jobs import job_of
from tests.unit.ranks import on_two_ranks

STEPS = 4


def work(checkpoint: Path, folder: Path, output: Path, ranks: int) -> StageJob[Any]:
    stage = {
        "stage": "sft",
        "data": {"mixture": {"scenes.yaml": 1.0}},
        "max_steps": STEPS,
        "save_steps": 2,
        "num_workers": ranks,
        "per_device_batch_size": 8 // ranks,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "gradient_checkpointing": ranks > 1,
        "sharding": "none" if ranks == 1 else "fsdp2",
    }
    config = RunConfig.model_validate(
        {
            "name": f"ranks-{ranks}",
            "output_dir": str(output),
            "base_dir": str(folder),
            "model": {"name_or_path": str(checkpoint), "dtype": "float32"},
            "cluster": {"num_gpus": ranks},
            "stages": [stage],
            "trackers": [],
        }
    )
    return job_of(config, RunDir(output / config.name), checkpoint)


def begin(given: StageJob[Any]) -> StageJob[Any]:
    RunDir.create(given.config, resume=True)
    return given


def losses(run: RunDir) -> list[float]:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def one_rank(rank: int, checkpoint: Path, folder: Path, output: Path) -> None:
    """Half of a stage, and the second half of it again."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ.update({name: str(value) for name, value in here.items()})  # accelerate looks for these
    dist.init_process_group("gloo", init_method=f"file://{output}/store", rank=rank, world_size=2)
    plain = sft.training_arguments

    def on_a_gpu(*settings: Any) -> Any:
        made = plain(*settings)
        assert made.device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return made

    sft.training_arguments = on_a_gpu
    sft_worker(work(checkpoint, folder, output, 2))
    dist.barrier()
    if dist.get_rank() == 0:
        stage = output / "ranks-2" / "sft"
        (stage / f"checkpoint-{STEPS}").rename(stage / "whole")
    dist.barrier()
    sft_worker(work(checkpoint, folder, output, 2))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "scenes").mkdir()
    marker_scenes.write(folder / "scenes", kind="list", split="sft", count=8)
    dataset = {"name": "scenes", "description": "Scenes.", "licence": "CC0-1.0"}
    dataset["source"] = {"path": "scenes/data.jsonl"}  # pyright: ignore[reportArgumentType]
    (folder / "scenes.yaml").write_text(yaml.safe_dump(dataset))
    return folder


@pytest.mark.slow
def test_shards_learn_what_a_whole_model_does_and_are_saved_whole(tiny_checkpoint, folder, tmp_path):
    whole = begin(work(tiny_checkpoint, folder, tmp_path, 1))
    sft_worker(whole)
    sharded = begin(work(tiny_checkpoint, folder, tmp_path, 2)).run
    on_two_ranks(one_rank, tiny_checkpoint, folder, tmp_path)
    assert losses(sharded) == pytest.approx(losses(whole.run), rel=1e-6)
    final = sharded.newest_checkpoint("sft")
    alone = whole.run.newest_checkpoint("sft")
    assert final is not None
    assert alone is not None
    weights = {
        name: load_file(path / "model.safetensors")
        for name, path in (
            ("resumed", final),
            ("at once", final.parent / "whole"),
            ("one rank", alone),
        )
    }
    for name, tensor in weights["one rank"].items():
        torch.testing.assert_close(weights["at once"][name], tensor, rtol=0, atol=1e-5)
        assert torch.equal(weights["resumed"][name], weights["at once"][name])
    assert load_model(final, dtype="float32") is not None
    export(final, tmp_path / "out")
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".bin", ".pt", ".pth")]
