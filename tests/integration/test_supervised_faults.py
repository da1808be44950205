"""Supervised stages under damage, updates that are not finite, full disks and hostile files."""

import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from posttrain.files.durable import DiskFull
from posttrain.quickstart.pretrain import DenseTrainer
from posttrain.run.directory import MANIFEST, RunDir, _seal, newest_checkpoint, verify_checkpoint
from posttrain.training.core.update_guard import NonFiniteUpdates
from posttrain.training.supervised.dpo import PreferenceTrainer
from posttrain.training.supervised.sft import SupervisedTrainer
from posttrain.training.supervised.trl_stage import StageTrainer, _move_into
from tests.integration.supervised_stages import DPO, SFT, TINY_MODEL, config_of, write_data
from tests.stage_jobs import job_of, worker_of
from tests.unit.run.test_checkpoints import lose_power, until_killed

pytestmark = pytest.mark.slow

SHORT = SFT | {"max_steps": 4, "save_steps": 2, "logging_steps": 1}
#: Steps whose updates are spoilt.
SPOILT = {2, 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="posttrain")


def work(folder: Path, output: Path, checkpoint: Path, stage: dict[str, Any]) -> RunDir:
    """Begin a run's only stage in this process, or go on with it."""
    config = config_of(folder, output, checkpoint, stage)
    run = RunDir.create(config, resume=True)
    worker_of(config.stages[0])(job_of(config, run, checkpoint))
    return run


@pytest.fixture(scope="module")
def trained(folder: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of SFT with the checkpoints of steps 2 and 4; shared, so never written to."""
    return work(folder, tmp_path_factory.mktemp("trained"), tiny_checkpoint, SHORT)


@pytest.fixture
def copied(trained: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(trained.path, tmp_path / "run")))


# Crashes and damage (rows 2 and 3)


@pytest.mark.parametrize("power_loss", [False, True])
def test_every_prefix_of_a_trainers_save_leaves_the_old_or_the_new(
    trained: RunDir, tmp_path: Path, power_loss: bool
) -> None:
    """Model, optimiser, schedule and random state of one step, never of two."""
    saved = trained.newest_checkpoint("sft")
    assert saved is not None
    files = sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())
    files.remove(MANIFEST)
    assert {"state/trainer.json", "rng_state.pth", "trainer_state.json"} <= set(files)
    prepared = tmp_path / "prepared"
    for step in (2, 4):
        RunDir(prepared).save_checkpoint("sft", step, lambda path: _write(path, files, step))  # noqa: B023
    old = {str(path.stat().st_ino) for path in prepared.rglob("*")}
    outcomes, killed = [], True
    while killed:
        run, log = RunDir(tmp_path / f"run-{len(outcomes)}"), tmp_path / "log"
        shutil.copytree(prepared, run.path, copy_function=os.link)
        written = run.scratch("sft") / "checkpoint-6"
        written.mkdir()
        _write(written, files, 6)
        killed = until_killed(
            lambda: run.save_checkpoint("sft", 6, lambda path: _move_into(path, written), keep=2),  # noqa: B023
            len(outcomes),
            log,
        )
        if power_loss:
            with log.open("a") as notes:
                notes.writelines(f"synced {inode}\n" for inode in old)
            lose_power(run.path / "sft", log)
        newest = run.newest_checkpoint("sft")
        assert newest is not None
        outcomes.append(int(newest.name[-1]))
        assert {(newest / name).read_text() for name in files} == {f"step {outcomes[-1]} " * 200}
        shutil.rmtree(run.path)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {4, 6}
    assert len(outcomes) > 3 * len(files)


def _write(folder: Path, names: list[str], step: int) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"step {step} " * 200)


def test_damage_to_any_file_of_a_checkpoint_is_told_and_the_one_before_it_taken(
    copied: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(0)
    newest, before = copied.path / "sft" / "checkpoint-4", copied.path / "sft" / "checkpoint-2"
    paths = [path for path in newest.rglob("*") if path.is_file()]
    assert len(paths) > 8
    assert "training_args.bin" not in {path.name for path in paths}  # a pickle of objects, of use to nobody
    for path in paths:
        whole = path.read_bytes()
        places = [chance.randrange(8 * len(whole)) for _ in range(5)] if path.name != MANIFEST else []
        damaged = [whole[:-2], whole[: len(whole) // 2], b"", *(_flipped(whole, place) for place in places)]
        for content in damaged:
            path.write_bytes(content)
            caplog.clear()
            assert copied.newest_checkpoint("sft") == before, path.name
            assert "passing over checkpoint-4" in caplog.text
        path.unlink()
        assert copied.newest_checkpoint("sft") == before
        path.write_bytes(whole)
    assert copied.newest_checkpoint("sft") == newest


def _flipped(content: bytes, bit: int) -> bytes:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


# Updates that are not finite (row 14)


def spoil(kind: str, finite: Any) -> Any:
    """A loss that is not finite, with a gradient that is or is not, or a gradient that is not."""
    if kind == "gradient":
        spoilt = finite * 1.0
        spoilt.register_hook(lambda gradient: gradient * torch.inf)
        return spoilt
    return finite * torch.nan if kind == "loss and gradient" else finite + torch.inf


@pytest.fixture
def spoiling(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, set[int]], dict[int, str]]:
    """Spoils the updates of some steps; gives what parameters and optimiser were before each step."""

    def begin(kind: str, steps: set[int]) -> dict[int, str]:
        before: dict[int, str] = {}

        def spoilt(compute: Callable[..., Any], step: Callable[[Any], int]) -> Callable[..., Any]:
            def computed(self: Any, *arguments: Any, **keywords: Any) -> Any:
                number = step(self)
                if number > max(before, default=0):
                    before[number] = digest(self)
                found = compute(self, *arguments, **keywords)
                if number not in steps:
                    return found
                if isinstance(found, tuple):
                    return spoil(kind, found[0]), *found[1:]
                return spoil(kind, found)

            return computed

        def of_trainer(self: Any) -> int:
            return self.state.global_step + 1

        def of_schedule(self: Any) -> int:
            return self.updates.schedule.last_epoch + 1

        for kind_of_trainer in (SupervisedTrainer, PreferenceTrainer):
            compute = spoilt(kind_of_trainer.compute_loss, of_trainer)
            monkeypatch.setattr(kind_of_trainer, "compute_loss", compute)
        monkeypatch.setattr(DenseTrainer, "losses", spoilt(DenseTrainer.losses, of_schedule))
        return before

    return begin


def optimizer_of(trainer: Any) -> torch.optim.Optimizer:
    """Transformers' trainers have it themselves, the tiny model's has it in its updates."""
    return trainer.updates.optimizer if isinstance(trainer, DenseTrainer) else trainer.optimizer


def digest(trainer: Any) -> str:
    """Of every parameter and of the optimiser's state of it."""
    found = hashlib.sha256()
    optimizer = optimizer_of(trainer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {}).values()
            for tensor in (parameter, *(value for value in state if torch.is_tensor(value))):
                values = tensor.detach()
                whole = values.full_tensor() if isinstance(values, DTensor) else values
                found.update(whole.numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny_model", "gradient"),
        ("tiny_model", "loss"),
        ("sft", "gradient"),
        ("sft", "loss"),
        ("sft", "loss and gradient"),
        ("dpo", "gradient"),
        ("dpo", "loss"),
    ],
)
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(
    name: str,
    kind: str,
    spoiling: Callable[[str, set[int]], dict[int, str]],
    folder: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    stage = {"tiny_model": TINY_MODEL | {"max_steps": 5}, "sft": SHORT, "dpo": DPO}[name]
    stage = stage | (
        {} if name == "tiny_model" else {"max_steps": 5, "eval_steps": None, "eval_dataset": None}
    )
    stage = {key: value for key, value in stage.items() if value is not None}
    before = spoiling(kind, SPOILT)
    run = work(folder, tmp_path, tiny_checkpoint, stage | {"logging_steps": 1, "save_steps": 5})
    for step in range(1, 5):
        assert (before[step] == before[step + 1]) == (step in SPOILT), step
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"]: row["update/skipped"] for row in rows if "loss" in row} == {
        step: float(step in SPOILT) for step in range(1, 6)
    }


@pytest.mark.parametrize(
    ("kind", "culprit"), [("gradient", r"gradients of \S*lora_A\S*\."), ("loss", "the loss")]
)
def test_updates_in_a_row_that_are_not_finite_end_the_stage(
    kind: str,
    culprit: str,
    spoiling: Callable[[str, set[int]], dict[int, str]],
    folder: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    before = spoiling(kind, set(range(2, 9)))
    stage = SHORT | {"max_steps": 9, "max_skipped_updates": 3}
    expected = rf"3 updates in a row were not finite; no parameter was changed.*{culprit}"
    with pytest.raises(NonFiniteUpdates, match=expected):
        work(folder, tmp_path, tiny_checkpoint, stage)
    assert max(before) == 4
    assert before[2] == before[3] == before[4]


# A full disk (row 18)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB, which only root can make."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_at_any_point_of_a_save_keeps_the_old_checkpoint(
    folder: Path,
    tiny_checkpoint: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    soak: bool,
) -> None:
    """The save of step 4 is tried with more and more space, until there is enough."""
    save, refused = StageTrainer._save_checkpoint, []

    def save_with_little_space(self: Any, model: Any, trial: Any) -> None:
        if self.state.global_step != 4:
            save(self, model, trial)
            return
        stage_dir = self._run.path / "sft"
        old = stage_dir / "checkpoint-2"
        needed = sum(path.stat().st_size for path in old.rglob("*"))
        filler = small_disk / "filler"
        for share in range(0, 100, 1 if soak else 5):
            free = shutil.disk_usage(small_disk).free
            filler.write_bytes(b"x" * (free - needed * share // 100))
            with pytest.raises(DiskFull, match=r"checkpoint-4 was not written, the disk is full.*--resume"):
                save(self, model, trial)
            refused.append(share)
            filler.unlink()
            assert newest_checkpoint(stage_dir) == old
            assert not list(stage_dir.glob(".checkpoint*"))
            assert not list((stage_dir / ".scratch").glob("checkpoint*"))
        save(self, model, trial)

    monkeypatch.setattr(StageTrainer, "_save_checkpoint", save_with_little_space)
    stage = {key: value for key, value in SHORT.items() if key != "lora"}
    run = work(folder, small_disk, tiny_checkpoint, stage)
    assert len(refused) >= 20
    newest = run.newest_checkpoint("sft")
    assert newest is not None
    assert newest.name == "checkpoint-4"


# Hostile files (row 21)


class Canary:
    """Touches a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._path}",)


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("rng_state.pth", r"[Ww]eights.only"),
        ("state/shard-00001-model-00001-of-00001.safetensors", "deserializing"),
        ("state/trainer.json", "decode|Expecting"),
        ("state/trainer.pt", r"[Ww]eights.only"),
    ],
)
def test_a_hostile_state_runs_nothing(
    name: str, refusal: str, copied: RunDir, folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The manifest gives it away; where that is forged as well, nothing but tensors and numbers is read."""
    stage: dict[str, Any] = SHORT | {"max_steps": 6}
    canary = tmp_path / "canary"
    checkpoint = copied.path / "sft" / "checkpoint-4"
    shutil.rmtree(copied.path / "sft" / "checkpoint-2")
    if name == "state/trainer.pt":
        stage = TINY_MODEL | {"max_steps": 4, "save_steps": 2}
        work(folder, tmp_path / "tiny", tiny_checkpoint, stage)
        checkpoint = tmp_path / "tiny" / "run" / "tiny_model" / "checkpoint-2"
        shutil.rmtree(checkpoint.with_name("checkpoint-4"))
    torch.save({"state": Canary(canary)}, checkpoint / name)
    with (checkpoint / name).open("rb") as file:
        torch.load(file, weights_only=False)
    assert canary.exists()
    canary.unlink()
    assert newest_checkpoint(checkpoint.parent) is None
    (checkpoint / MANIFEST).unlink()
    _seal(checkpoint)
    verify_checkpoint(checkpoint)
    run = checkpoint.parents[1]
    (run / "resolved.json").unlink()
    config = config_of(folder, run.parent, tiny_checkpoint, stage)
    with pytest.raises(Exception, match=refusal):
        worker_of(config.stages[0])(job_of(config, RunDir(run), tiny_checkpoint, resume=checkpoint))
    assert not canary.exists()


@pytest.mark.parametrize("model_type", ["qwen3_vl", "unheard_of"])
def test_a_model_that_brings_code_runs_none_of_it(
    model_type: str, folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """`auto_map` in every config of a checkpoint: of a known kind it is passed over, of another refused."""
    model, canary = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model")), tmp_path / "canary"
    (model / "hostile.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer")
    code = {"auto_map": dict.fromkeys((*names, "AutoImageProcessor"), "hostile.Hostile")}
    for path in model.glob("*config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | code))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    stage = SHORT | {"max_steps": 1}
    if model_type == "qwen3_vl":
        work(folder, tmp_path, model, stage)
    else:
        with pytest.raises(ValueError, match=r"family|trust_remote_code|model_type|configuration"):
            work(folder, tmp_path, model, stage)
    assert not canary.exists()
