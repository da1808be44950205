"""FSDP2 on two ranks: the losses of one, a checkpoint that is a whole model, and resuming on other ranks."""

import dataclasses
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from posttrain.config import RunConfig
from posttrain.models.export import export
from posttrain.models.load import load_model
from posttrain.run.directory import RunDir
from posttrain.training.core.distributed import sum_over_ranks
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised import stage_parts
from posttrain.training.supervised.sft import sft_worker
from tests.stage_jobs import job_of, write_scenes
from tests.unit.ranks import on_two_ranks

STEPS = 4


def work(checkpoint: Path, folder: Path, output: Path, ranks: int, dtype: str, name: str) -> StageJob[Any]:
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
            "name": name,
            "output_dir": str(output),
            "base_dir": str(folder),
            "model": {"name_or_path": str(checkpoint), "dtype": dtype},
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


def one_rank(rank: int, job: StageJob[Any], store: Path) -> None:
    """Run a job on this rank of two, as Ray Train would."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ.update({name: str(value) for name, value in here.items()})  # accelerate looks for these
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    sft_worker(job)
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(ranks: int, job: StageJob[Any], store: Path) -> None:
    """Run a job on one rank or on two."""
    if ranks == 1:
        sft_worker(job)
    else:
        on_two_ranks(one_rank, job, store)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder, 8)
    return folder


@pytest.fixture(scope="module")
def sharded(
    tiny_checkpoint: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, RunDir]:
    """By type, what two ranks do from the first step to the last."""
    runs = {}
    for dtype in ("float32", "bfloat16"):
        output = tmp_path_factory.mktemp("sharded")
        job = begin(work(tiny_checkpoint, folder, output, 2, dtype, "sharded"))
        on_ranks(2, job, output / "store")
        runs[dtype] = job.run
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_learn_what_a_whole_model_does_and_resume_on_other_ranks(
    tiny_checkpoint, folder, sharded, tmp_path, dtype
):
    """Two ranks, one rank; two ranks up to step 1, one up to step 3, two to the end: the same."""

    def job(ranks: int, name: str, until: int | None = None) -> StageJob[Any]:
        given = work(tiny_checkpoint, folder, tmp_path, ranks, dtype, name)
        return dataclasses.replace(given, until=until)

    whole = begin(job(1, "whole"))
    on_ranks(1, whole, tmp_path / "unused")
    moved = begin(job(2, "moved")).run
    for ranks, until in ((2, 1), (1, 3), (2, STEPS)):
        on_ranks(ranks, job(ranks, "moved", until), tmp_path / f"store-{until}")
    exact = 1e-6 if dtype == "float32" else 1e-3  # bfloat16's gradients are rounded rank by rank
    assert losses(sharded[dtype]) == pytest.approx(losses(whole.run), rel=exact)
    assert losses(moved) == pytest.approx(losses(whole.run), rel=exact)
    finals = [run.newest_checkpoint("sft") for run in (whole.run, sharded[dtype], moved)]
    weights = [load_file(final / "model.safetensors") for final in finals if final]
    assert len(weights) == 3
    for name, tensor in weights[0].items():
        assert tensor.dtype == getattr(torch, dtype)
        for other in weights[1:]:
            error = (other[name].float() - tensor.float()).norm()
            assert error <= 10 * exact * tensor.float().norm(), name


@pytest.mark.slow
def test_two_ranks_that_resume_end_bit_for_bit_as_if_they_had_not_stopped(
    tiny_checkpoint, folder, sharded, tmp_path
):
    run = begin(work(tiny_checkpoint, folder, tmp_path, 2, "bfloat16", "stopped")).run
    for until in (1, STEPS):
        given = work(tiny_checkpoint, folder, tmp_path, 2, "bfloat16", "stopped")
        on_ranks(2, dataclasses.replace(given, until=until), tmp_path / f"stopped-{until}")
    at_once, stopped = sharded["bfloat16"].newest_checkpoint("sft"), run.newest_checkpoint("sft")
    assert at_once is not None
    assert stopped is not None
    assert losses(RunDir(at_once.parents[1])) == losses(RunDir(stopped.parents[1]))
    for path in (at_once / "model.safetensors", *sorted((at_once / "state").glob("*.safetensors"))):
        ours, theirs = load_file(path), load_file(stopped / path.relative_to(at_once))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), path.name


@pytest.mark.slow
def test_a_checkpoint_is_a_whole_model_once_and_nothing_that_runs(sharded, tmp_path):
    final = sharded["bfloat16"].newest_checkpoint("sft")
    assert final is not None
    whole = load_file(final / "model.safetensors")
    parameters = sum(tensor.numel() for tensor in whole.values())
    size = {path: path.stat().st_size for path in final.rglob("*") if path.is_file()}
    # 2 bytes of the weights, and at most 12 of masters and moments; the headers are small.
    assert size.pop(final / "model.safetensors") < 2 * parameters * 1.1
    assert sum(n for path, n in size.items() if path.parent.name == "state") < 12 * parameters * 1.1
    assert {path.suffix for path in (final / "state").iterdir()} == {".safetensors", ".json"}
    assert json.loads((final / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_model(final, dtype="bfloat16") is not None
    export(final, tmp_path / "out")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in left
    assert not {name for name in left if name.startswith(("state", "rng_state", "figures"))}


def slow_disk(rank: int, job: StageJob[Any], store: Path) -> None:
    """Rank 0 opens its data and weights for longer than a collective may take."""
    limit = timedelta(seconds=2)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    load_policy = stage_parts.load_policy

    def slowly(*arguments: Any) -> Any:
        time.sleep(5 * (rank == 0))
        return load_policy(*arguments)

    stage_parts.load_policy = slowly
    with stage_parts.stage_parts(job):
        sum_over_ranks(torch.zeros(1))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_wait_for_one_whose_disk_is_slow(tiny_checkpoint, folder, tmp_path):
    job = begin(work(tiny_checkpoint, folder, tmp_path, 2, "bfloat16", "run"))
    on_two_ranks(slow_disk, job, tmp_path / "store")
