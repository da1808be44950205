import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.training.on_policy import weight_sync
from posttrain.training.on_policy.weight_sync import PREFIX, WeightSync


class Source:
    def write_weights(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"weights")


class Sink:
    """Keeps what it was told, as an engine does until the next publish."""

    def __init__(self) -> None:
        self.published: list[tuple[Path, int]] = []
        self.broken = False

    def publish(self, path: Path, version: int) -> None:
        if self.broken:
            raise TimeoutError("worker 1 did not take version 2")
        assert (path / "model.safetensors").is_file()
        self.published.append((path, version))


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weight_sync, "SHARED_MEMORY", tmp_path)
    return tmp_path


def test_only_the_version_in_use_is_kept(memory: Path):
    sink = Sink()
    sync = WeightSync(Source(), sink)
    for version in (1, 2, 3):
        sync.publish(version)
    assert [version for _, version in sink.published] == [1, 2, 3]
    assert [path.is_dir() for path, _ in sink.published] == [False, False, True]
    sync.close()
    assert list(memory.iterdir()) == []


def test_a_version_that_was_not_taken_leaves_the_one_in_use(memory: Path):
    sink = Sink()
    sync = WeightSync(Source(), sink)
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
    WeightSync(Source(), Sink()).close()
    assert {path.name for path in memory.iterdir()} == {living.name, "somebody-elses"}
