"""Files between nodes, with the home node's actor called in this process."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.run import home
from posttrain.run.home import (
    HomeFiles,
    Piece,
    TransferError,
    fetch_files,
    fetch_folder,
    send_home,
    writing_home,
)


class FarHome:
    """The files of a home node that lie elsewhere on this machine: its paths begin with another folder."""

    def __init__(self, root: Path) -> None:
        self._files, self._root = HomeFiles(), root
        self.reads = 0
        self.spoil: Callable[[Piece], Piece] = lambda piece: piece

    def at(self, path: Path) -> Path:
        return self._root / path.relative_to("/")

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self, f"_{name}"))

    def _stamps(self, folder: Path) -> object:
        return self._files.stamps(self.at(folder))

    def _digest(self, path: Path) -> str:
        return self._files.digest(self.at(path))

    def _lacking(self, paths: list[Path]) -> list[Path]:
        return [path for path in paths if not self.at(path).is_file()]

    def _read(self, path: Path, offset: int) -> Piece:
        self.reads += 1
        return self.spoil(self._files.read(self.at(path), offset))

    def _write(self, path: Path, unfinished: str, piece: Piece, last: bool) -> None:
        self._files.write(self.at(path), unfinished, self.spoil(piece), last)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FarHome:
    found = FarHome(tmp_path / "home")
    monkeypatch.setattr(home, "_home", lambda: found)
    monkeypatch.setattr(home, "_get", lambda answer: answer)
    monkeypatch.setattr(home, "PIECE", 1000)
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    return found


def checkpoint(folder: Path, seed: int = 0) -> None:
    (folder / "state").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name, size in (("model.safetensors", 2500), ("state/part.bin", 1000), ("state/empty", 0)):
        (folder / name).write_bytes(bytes((seed + at) % 256 for at in range(size)))


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_folder_is_fetched_once_and_again_when_it_changes(far: FarHome, tmp_path: Path):
    there = tmp_path / "runs" / "checkpoint-3"
    checkpoint(far.at(there))
    copy = fetch_folder(there)
    assert copy != there
    assert copy.name == "checkpoint-3"
    assert contents(copy) == contents(far.at(there))
    reads = far.reads
    assert fetch_folder(there) == copy
    assert far.reads == reads
    checkpoint(far.at(there), seed=1)  # the same names and sizes
    other = fetch_folder(there)
    assert other != copy
    assert contents(other) == contents(far.at(there))


def test_what_is_here_already_stays_where_it_is(far: FarHome, tmp_path: Path):
    there = tmp_path / "model"
    checkpoint(far.at(there))
    checkpoint(there)  # an equal copy of another time
    os.utime(there / "config.json", (1, 1))
    assert fetch_folder(there) == there
    assert fetch_folder(Path("Qwen/Qwen3-VL-8B-Instruct")) == Path("Qwen/Qwen3-VL-8B-Instruct")
    (there / "model.safetensors").write_bytes(bytes(2500))  # another model of the same sizes
    assert contents(fetch_folder(there)) == contents(far.at(there))


def test_images_go_both_ways_whole_or_not_at_all(far: FarHome, tmp_path: Path):
    made, fetched = tmp_path / "images" / "made.png", tmp_path / "images" / "at-home.png"
    made.parent.mkdir()
    made.write_bytes(bytes(range(250)) * 10)
    assert send_home([made, made]) == [made]
    assert send_home([made]) == []
    far.at(fetched).write_bytes(b"pixels" * 400)
    fetch_files([fetched, made])
    assert fetched.read_bytes() == far.at(fetched).read_bytes()
    assert far.at(made).read_bytes() == made.read_bytes()
    far.spoil = lambda piece: Piece(piece.data[:-1] + b"?", piece.sha256)
    fetched.unlink()
    with pytest.raises(TransferError, match="another hash"):
        fetch_files([fetched])
    assert [path.name for path in made.parent.iterdir()] == ["made.png"]


def test_a_rank_elsewhere_writes_its_part_of_a_checkpoint_home(far: FarHome, tmp_path: Path):
    directory = tmp_path / "runs" / ".checkpoint-1.tmp"
    far.at(directory).mkdir(parents=True)
    with writing_home(directory):
        (directory / "state").mkdir()
        (directory / "state" / "shard-2.safetensors").write_bytes(b"x" * 2001)
    assert not directory.exists()
    assert contents(far.at(directory)) == {"state/shard-2.safetensors": b"x" * 2001}
    shared = tmp_path / "shared"
    shared.mkdir()
    with writing_home(shared):
        (shared / "here").write_text("stays")
    assert (shared / "here").is_file()
    assert not far.at(shared).exists()
