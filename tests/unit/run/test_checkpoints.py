"""Checkpoints under crashes, power loss, damage and a full disk."""

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import RunConfig
from posttrain.files.durable import DiskFull, write_atomic
from posttrain.run.directory import (
    CorruptCheckpoint,
    RunDir,
    newest_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)

#: What a checkpoint of step n holds.
FILES = {
    "model.safetensors": b"weights %d " * 500,
    "config.json": b'{"step": %d}',
    "state/rng.pt": b"rng %d " * 9,
}
KILLED = 9


def config_of(folder: Path, **changes: Any) -> RunConfig:
    stage = {"stage": "tiny_model", "max_steps": 10, "global_batch_size": 4, "learning_rate": 0.01}
    settings = {"name": "demo", "output_dir": str(folder), "seed": 0, "model": {}, "stages": [stage]}
    return RunConfig.model_validate(settings | changes)


def content(step: int) -> dict[str, bytes]:
    return {name: text.replace(b"%d", str(step).encode()) for name, text in FILES.items()}


def writer(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, text in content(step).items():
            (folder / name).parent.mkdir(exist_ok=True)
            with (folder / name).open("wb") as file:
                for start in range(0, len(text), 2000):
                    file.write(text[start : start + 2000])

    return write


def assert_holds(checkpoint: Path | None, step: int) -> None:
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{step}"
    assert {name: (checkpoint / name).read_bytes() for name in FILES} == content(step)


# Crashes


def until_killed(action: Callable[[], object], survives: int, log: Path) -> bool:
    """Run `action` in a process that dies before its file operation number `survives`.

    Every opening, making, renaming and removing of a file or folder beside the log, and every fsync, is
    an operation. The log tells them, and which files were synced.

    Returns:
        Whether it was killed.
    """
    child = os.fork()
    if child == 0:
        notes = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        left = survives
        fsync = os.fsync

        def operation(event: str, arguments: tuple[Any, ...] = ()) -> None:
            nonlocal left
            if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.fsync"):
                return
            path = str(arguments[0]) if arguments else ""
            if path.startswith("/") and not path.startswith(str(log.parent)):
                return  # Python's own reading
            if left == 0:
                os._exit(KILLED)
            left -= 1
            os.write(notes, f"{event} {path}\n".encode())

        def synced(descriptor: int) -> None:
            operation("os.fsync", (Path(f"/proc/self/fd/{descriptor}").readlink(),))
            fsync(descriptor)
            os.write(notes, f"synced {os.fstat(descriptor).st_ino}\n".encode())

        os.fsync = synced
        sys.addaudithook(operation)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def lose_power(folder: Path, log: Path) -> None:
    """Of every file that was never synced only half reached the disk."""
    synced = {line.split()[1] for line in log.read_text().splitlines() if line.startswith("synced")}
    for path in folder.rglob("*"):
        if path.is_file() and str(path.stat().st_ino) not in synced:
            os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("power_loss", [False, True])
def test_every_prefix_of_a_save_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, power_loss: bool
) -> None:
    prepared = RunDir(tmp_path / "prepared")
    for step in (1, 2):
        prepared.save_checkpoint("sft", step, writer(step))
    old = {str(p.stat().st_ino) for p in prepared.path.rglob("*")}
    assert old
    outcomes: list[int] = []
    killed = True
    while killed:
        run, log = RunDir(tmp_path / f"run-{len(outcomes)}"), tmp_path / "log"
        shutil.copytree(prepared.path, run.path, copy_function=os.link)
        killed = until_killed(lambda: run.save_checkpoint("sft", 3, writer(3), keep=2), len(outcomes), log)  # noqa: B023
        if power_loss:
            with log.open("a") as file:
                file.writelines(f"synced {inode}\n" for inode in old)
            lose_power(run.path, log)
        for visible in (run.path / "sft").glob("checkpoint-*"):
            verify_checkpoint(visible)
        newest = run.newest_checkpoint("sft")
        assert newest is not None
        outcomes.append(int(newest.name[-1]))
        assert_holds(newest, outcomes[-1])
        # Whoever goes on saves again, and nothing of the crash is left.
        run.save_checkpoint("sft", 3, writer(3), keep=2)
        assert_holds(run.newest_checkpoint("sft"), 3)
        assert sorted(path.name for path in (run.path / "sft").iterdir() if path.name[0] != ".") == [
            "checkpoint-2",
            "checkpoint-3",
        ]
        shutil.rmtree(run.path)
    assert len(outcomes) > 30
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {2, 3}


def test_nothing_old_is_removed_before_the_new_one_is_on_the_disk(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.save_checkpoint("sft", 1, writer(1))
    assert not until_killed(lambda: run.save_checkpoint("sft", 2, writer(2), keep=1), 10**6, tmp_path / "log")
    operations = (tmp_path / "log").read_text().splitlines()
    renamed = next(n for n, line in enumerate(operations) if line.startswith("os.rename"))
    assert operations[renamed].endswith(".checkpoint-2.tmp")
    synced = operations.index(f"os.fsync {run.path / 'sft'}", renamed)
    removals = [n for n, line in enumerate(operations) if line.startswith(("os.remove", "os.rmdir"))]
    assert removals
    assert min(removals) > synced


def test_every_prefix_of_a_small_write_leaves_the_old_or_the_new_text(tmp_path: Path) -> None:
    path, log, found = tmp_path / "stage.json", tmp_path / "log", []
    killed = True
    while killed:
        path.write_text("old")
        killed = until_killed(lambda: write_atomic(path, "new"), len(found), log)
        found.append(path.read_text())
    assert set(found) == {"old", "new"}
    assert found[-1] == "new"


def test_a_run_killed_while_it_begins_can_be_resumed(tmp_path: Path) -> None:
    killed, survives = True, 0
    while killed:
        config = config_of(tmp_path / str(survives))
        killed = until_killed(lambda: RunDir.create(config, resume=False), survives, tmp_path / "log")  # noqa: B023
        run = RunDir.create(config, resume=True)
        assert {path.name for path in run.path.iterdir() if path.name[0] != "."} == {
            "resolved.json",
            "config.yaml",
            "environment.json",
        }
        survives += 1
    assert survives > 12


# Damage


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path)
    for step in (9, 10):
        run.save_checkpoint("sft", step, writer(step))
    assert_holds(run.newest_checkpoint("sft"), 10)
    weights = tmp_path / "sft" / "checkpoint-10" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert_holds(run.newest_checkpoint("sft"), 9)
    assert "passing over checkpoint-10" in caplog.text
    assert "model.safetensors has" in caplog.text


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint-1", writer(1))
    for path in [path for path in checkpoint.rglob("*") if path.is_file()]:
        original = path.read_bytes()
        for byte in range(0, len(original), 1 if len(original) < 1000 else 97):
            flipped = bytearray(original)
            flipped[byte] ^= 1 << byte % 8
            path.write_bytes(flipped)
            try:
                verify_checkpoint(checkpoint)
            except CorruptCheckpoint:
                continue
            # White space of the manifest is all that may change.
            assert path.name == "manifest.json"
            assert json.loads(flipped) == json.loads(original)
        path.write_bytes(original)
    verify_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"files": 3, "digest": ""}', '{"files": {"x": 1}}', "\ud800"]
)
def test_a_broken_manifest_is_a_corrupt_checkpoint(tmp_path: Path, manifest: str) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint-1", writer(1))
    (checkpoint / "manifest.json").write_bytes(manifest.encode("utf-8", "surrogatepass"))
    with pytest.raises(CorruptCheckpoint, match="checkpoint-1"):
        verify_checkpoint(checkpoint)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_a_corrupt_checkpoint(tmp_path: Path, name: str) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint-1", writer(1))
    (checkpoint / name).unlink()
    assert newest_checkpoint(tmp_path) is None


def test_no_checkpoint_where_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None


# Keeping, replacing, finishing


def test_the_newest_are_kept_by_step_and_not_by_name(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (8, 9, 10, 100):
        run.save_checkpoint("sft", step, writer(step), keep=2)
    assert sorted(path.name for path in (tmp_path / "sft").iterdir()) == ["checkpoint-10", "checkpoint-100"]


def test_a_corrupt_later_checkpoint_crowds_out_no_valid_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (1, 3):
        run.save_checkpoint("sft", step, writer(step))
    (tmp_path / "sft" / "checkpoint-3" / "config.json").unlink()
    run.save_checkpoint("sft", 2, writer(2), keep=1)
    assert_holds(run.newest_checkpoint("sft"), 2)
    run.save_checkpoint("sft", 3, writer(3), keep=1)
    assert_holds(run.newest_checkpoint("sft"), 3)


def test_a_valid_checkpoint_is_not_written_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint-1", writer(1))
    save_checkpoint(tmp_path / "checkpoint-1", lambda path: pytest.fail("written again"))


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        writer(2)(folder)
        raise ValueError("tensors disagree")

    save_checkpoint(tmp_path / "checkpoint-1", writer(1))
    with pytest.raises(ValueError, match="tensors disagree"):
        save_checkpoint(tmp_path / "checkpoint-2", write)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_finished_stage_names_its_final_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path)
    (run.scratch("sft") / "passing").touch()
    checkpoint = run.save_checkpoint("sft", 5, writer(5))
    assert run.final_checkpoint("sft") is None
    run.finish_stage("sft", checkpoint)
    assert_holds(run.final_checkpoint("sft"), 5)
    assert not (tmp_path / "sft" / ".scratch").exists()
    (checkpoint / "config.json").write_text("{}")
    assert run.final_checkpoint("sft") is None
    assert "stage sft has to be finished again" in caplog.text


# A full disk


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does."""

    def write(folder: Path) -> None:
        writer(2)(folder)
        with Path("/dev/full").open("w") as file:
            file.write("weights")

    save_checkpoint(tmp_path / "checkpoint-1", writer(1))
    with pytest.raises(DiskFull, match=r"checkpoint-2 was not written, the disk is full .* --resume"):
        save_checkpoint(tmp_path / "checkpoint-2", write)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert_holds(newest_checkpoint(tmp_path), 1)


def test_a_disk_that_fills_up_at_any_operation_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "checkpoint-1", writer(1))
    left = 0

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "mkdir", failing(os.mkdir))
    refused = 0
    while newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1":
        left = refused
        with pytest.raises(DiskFull):
            save_checkpoint(tmp_path / "checkpoint-2", writer(2))
        refused += 1
        assert_holds(tmp_path / "checkpoint-1", 1)
        assert not list(tmp_path.glob(".*"))
    # Only the sync after the rename is left to fail, with the new checkpoint in its place.
    assert_holds(newest_checkpoint(tmp_path), 2)
    assert refused > 7


def test_a_writer_that_does_not_say_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with pytest.raises(RuntimeError, match="file write failed"):
        save_checkpoint(tmp_path / "checkpoint-1", write)
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match="file write failed"):
        save_checkpoint(tmp_path / "checkpoint-1", write)


def test_a_full_disk_keeps_a_small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "stage.json", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"stage\.json was not written, the disk is full"):
        write_atomic(tmp_path / "stage.json", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("stage.json", "old")]


@pytest.fixture(autouse=True)
def _warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="posttrain")
