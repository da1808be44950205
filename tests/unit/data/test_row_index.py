"""The file of an index: damaged, half-written, of another format, hostile, not to be had."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from posttrain.data.checking import check_rows
from posttrain.data.row_index import FORMAT, IndexFileError, open_index
from posttrain.data.sealing import INDEXES
from posttrain.files.durable import DiskFull
from tests.unit.data.sample_rows import age, append, contents, index_file, opened, row


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes]:
    """A folder of rows, a cache, and the index that is in it."""
    folder, cache = tmp_path_factory.mktemp("rows"), tmp_path_factory.mktemp("cache")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    lines = [row(number, *["a.png"] * (number % 3)) for number in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    age(folder)
    opened(folder, cache)
    return folder, cache, index_file(cache).read_bytes()


@given(st.data())
def test_a_damaged_index_is_made_again(small: tuple[Path, Path, bytes], data: st.DataObject) -> None:
    folder, cache, whole = small
    place = data.draw(st.integers(0, len(whole) - 1))
    damage = data.draw(st.sampled_from(["cut", "flip", "longer", "garbage"]))
    damaged = {
        "cut": whole[:place],
        "flip": whole[:place]
        + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))])
        + whole[place + 1 :],
        "longer": whole + bytes(place + 1),
        "garbage": data.draw(st.binary(max_size=200)),
    }[damage]
    index_file(cache).write_bytes(damaged)
    with pytest.raises(IndexFileError):
        open_index(index_file(cache))
    assert len(opened(folder, cache, look_again=False)) == 20
    assert index_file(cache).read_bytes() == whole


def test_an_index_of_another_format_is_made_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.data.row_index.FORMAT", FORMAT + 1)
    opened(folder, cache)
    monkeypatch.undo()
    with pytest.raises(IndexFileError, match=f"no index of the format {FORMAT}"):
        open_index(index_file(cache))
    opened(folder, cache)
    open_index(index_file(cache))


def test_nothing_in_an_index_is_executed(folder: Path, cache: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(folder / "executed"),)

    opened(folder, cache)
    index_file(cache).write_bytes(pickle.dumps(Hostile()))
    opened(folder, cache)
    assert not (folder / "executed").exists()


def test_an_index_of_other_data_is_not_taken(folder: Path, cache: Path, tmp_path: Path) -> None:
    opened(folder, cache)
    other = tmp_path / "other"
    other.mkdir()
    (other / "rows.jsonl").write_text(json.dumps(row(0)) + "\n")
    elsewhere = tmp_path / "other cache"
    opened(other, elsewhere)
    shutil.copy(index_file(cache), index_file(elsewhere))
    assert len(opened(other, elsewhere)) == 1


def test_a_write_that_fails_leaves_nothing_half_written(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("posttrain.data.row_index.os.fsync", full)
        with pytest.raises(DiskFull):
            opened(folder, cache)
    assert list((cache / INDEXES).iterdir()) == []
    opened(folder, cache)


def test_a_cache_that_cannot_be_written_costs_a_check(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "no folder").touch()
    index = opened(folder, tmp_path / "no folder")
    assert contents(index) == contents(check_rows(folder / "rows.jsonl"))
    assert "was not kept" in caplog.text
    assert len(pickle.loads(pickle.dumps(index))) == len(index)


def test_an_index_goes_to_another_process_by_its_name(folder: Path, cache: Path) -> None:
    index = opened(folder, cache)
    sent = pickle.dumps(index)
    assert len(sent) < 500
    assert contents(pickle.loads(sent)) == contents(index)
    append(folder / "rows.jsonl")
    opened(folder, cache)
    with pytest.raises(IndexFileError, match="made anew"):
        pickle.loads(sent)


def test_old_indexes_go_when_their_data_are_gone(folder: Path, cache: Path, tmp_path: Path) -> None:
    for name in ("gone", "there", "young"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text(json.dumps(row(0)) + "\n")
        opened(tmp_path / name, cache)
        for file in (cache / INDEXES).glob("*.index"):
            if name != "young":
                os.utime(file, (0, 0))
    for name in ("gone", "young"):
        shutil.rmtree(tmp_path / name)
    opened(folder, cache)
    kept = {open_index(file).path.parent.name for file in (cache / INDEXES).iterdir()}
    assert kept == {"there", "young", folder.name}
