"""Weights on their way to the engines: where there is room for them, and which versions are kept."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from posttrain.config import ModelConfig, RlStage
from posttrain.inference.weights import CheckpointWeights
from posttrain.training.on_policy import learner_group, weight_sync
from posttrain.training.on_policy.learner_group import LearnerActor
from posttrain.training.on_policy.weight_sync import GIB, PREFIX, NoRoomError, WeightSync, make_folder


class Source:
    def make_folder(self, scratch: Path) -> Path:
        return make_folder(7, scratch)

    def write_weights(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"weights")


class Sink:
    """Keeps what it was told, as an engine does until the next publish."""

    def __init__(self) -> None:
        self.published: list[tuple[Path, int]] = []
        self.broken = False

    def publish(self, weights: CheckpointWeights) -> None:
        if self.broken:
            raise TimeoutError("worker 1 did not take version 2")
        assert (weights.path / "model.safetensors").is_file()
        self.published.append((weights.path, weights.version))


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weight_sync, "SHARED_MEMORY", tmp_path)
    return tmp_path


def test_only_the_version_in_use_is_kept(memory: Path):
    sink = Sink()
    sync = WeightSync(Source(), sink, memory)
    for version in (1, 2, 3):
        sync.publish(version)
    assert [version for _, version in sink.published] == [1, 2, 3]
    assert [path.is_dir() for path, _ in sink.published] == [False, False, True]
    sync.close()
    assert list(memory.iterdir()) == []


def test_a_version_that_was_not_taken_leaves_the_one_in_use(memory: Path):
    sink = Sink()
    sync = WeightSync(Source(), sink, memory)
    sync.publish(1)
    sink.broken = True
    with pytest.raises(TimeoutError, match="worker 1"):
        sync.publish(2)
    assert sink.published[0][0].is_dir()


def test_what_a_killed_run_left_is_removed_and_a_living_ones_is_not(memory: Path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftover = memory / f"{PREFIX}{dead.pid}-abc"
    living = memory / f"{PREFIX}{os.getpid()}-abc"
    for folder in (leftover, living, memory / "somebody-elses"):
        folder.mkdir()
    WeightSync(Source(), Sink(), memory).close()
    assert {path.name for path in memory.iterdir()} == {living.name, "somebody-elses"}


#: Bytes of Qwen3-VL-8B in bfloat16.
EIGHT_B = 2 * 8_767_000_000


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Stand-ins for shared memory, the folder of temporary files and that of the run."""
    folders = {name: tmp_path / name for name in ("shm", "tmp", "run")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setattr(weight_sync, "SHARED_MEMORY", folders["shm"])
    monkeypatch.setattr(tempfile, "tempdir", str(folders["tmp"]))
    return folders


@pytest.fixture
def set_free(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says how many GiB each of the places has free, as the file system would; `held` those in use."""

    def set_free(held: float = 0.0, **gib: float) -> None:
        def statvfs(path: Path) -> SimpleNamespace:
            free, used = (int(size * GIB) // 4096 for size in (gib[Path(path).name], held))
            return SimpleNamespace(f_frsize=4096, f_blocks=free + used, f_bfree=free, f_bavail=free)

        monkeypatch.setattr(os, "statvfs", statvfs)

    return set_free


def test_shared_memory_is_used_where_it_has_room_for_two_versions(
    places: dict[str, Path], set_free: Callable[..., None], caplog: pytest.LogCaptureFixture
):
    set_free(shm=33, tmp=100, run=100)
    assert make_folder(EIGHT_B, places["run"]).parent == places["shm"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("free", "chosen"),
    [
        ({"shm": 0.0625, "tmp": 100, "run": 100}, "tmp"),
        ({"shm": 32, "tmp": 100, "run": 100}, "tmp"),  # room for one version is not enough
        ({"shm": 0, "tmp": 20, "run": 40}, "run"),
    ],
)
def test_a_disk_is_used_where_shared_memory_is_too_small_and_the_warning_says_what_would_do(
    places: dict[str, Path],
    set_free: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    free: dict[str, float],
    chosen: str,
):
    set_free(**free)
    assert make_folder(EIGHT_B, places["run"]).parent == places[chosen]
    assert "two versions of the weights take 32.7 GiB" in caplog.text
    assert "docker run --shm-size=33g" in caplog.text
    assert f"they are published through {places[chosen]}, which is slower" in caplog.text


def test_what_others_hold_in_shared_memory_counts_for_its_size(
    places: dict[str, Path], set_free: Callable[..., None], caplog: pytest.LogCaptureFixture
):
    set_free(shm=10, tmp=100, run=100, held=6)
    make_folder(EIGHT_B, places["run"])
    assert "docker run --shm-size=39g" in caplog.text


def test_an_error_names_every_place_where_none_has_room(
    places: dict[str, Path], set_free: Callable[..., None]
):
    set_free(shm=0.0625, tmp=20, run=30)
    with pytest.raises(NoRoomError) as caught:
        make_folder(EIGHT_B, places["run"])
    said = str(caught.value)
    for name, room in (("shm", "0.0625"), ("tmp", "20"), ("run", "30")):
        assert f"{places[name]} has {room} GiB free" in said
    assert "two versions of the weights take 32.7 GiB" in said
    assert "--shm-size=33g" in said
    assert not [folder for place in places.values() for folder in place.iterdir()]


def test_a_machine_without_shared_memory_uses_its_disk_without_a_word(
    places: dict[str, Path], set_free: Callable[..., None], caplog: pytest.LogCaptureFixture
):
    places["shm"].rmdir()
    set_free(tmp=100, run=100)
    assert make_folder(EIGHT_B, places["run"]).parent == places["tmp"]
    assert not caplog.records
    set_free(tmp=1, run=1)
    with pytest.raises(NoRoomError, match="Free a disk, or set TMPDIR") as caught:
        make_folder(EIGHT_B, places["run"])
    assert "--shm-size" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_room_is_measured_for_the_type_that_engines_read(
    stage: RlStage, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
):
    asked: list[int] = []
    monkeypatch.setattr(learner_group, "make_folder", lambda size, scratch: asked.append(size) or scratch)
    learner = LearnerActor(0, 1)
    config = ModelConfig.model_validate({"family": "qwen3_vl", "dtype": dtype})
    learner.start("", config, stage, tiny_checkpoint, resume=False)
    assert learner.make_folder(tmp_path) == tmp_path
    learner.write_weights(tmp_path / "weights")
    written = (tmp_path / "weights" / "model.safetensors").stat().st_size
    assert asked[0] == pytest.approx(written, rel=0.05)
