"""A dataset is checked once: what the index keeps, when it is used, and when it is made again."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.data import checking, dataset, sealing
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset
from posttrain.data.formats import DataError, parse_row, rows
from posttrain.data.row_index import MISFITS, USES, IndexFileError, RowIndex, Use, open_index
from posttrain.data.sealing import INDEXES, sealed_index
from posttrain.files.durable import DiskFull
from posttrain.media.images import ImageError, check_image
from posttrain.types import Sample, VideoRef

TURN = {"role": "assistant", "content": "K"}


def row(number: int, *shown: str, **changes: object) -> dict[str, object]:
    kinds = ("video" if name == "walk" or name.endswith(".mp4") else "image" for name in shown)
    blocks = [{"type": kind, kind: name} for kind, name in zip(kinds, shown, strict=True)]
    asked = {"role": "user", "content": [*blocks, {"type": "text", "text": f"Q {number}"}]}
    return {"id": str(number), "messages": [asked, TURN]} | changes


@pytest.fixture
def folder(tmp_path: Path, clips: list[VideoRef]) -> Path:
    """Rows that show images and videos, some of them broken; everything is a minute old."""
    for name, colour in {"a.png": "red", "b.png": "green", "c.png": "blue"}.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    shutil.copy(clips[0].paths[0], tmp_path / "film.mp4")
    shutil.copytree(clips[2].paths[0], tmp_path / "walk")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-20])
    lines = [
        row(0),
        row(1, "a.png"),
        row(2, "a.png", "b.png"),
        row(3, "cut.png"),
        row(4, "film.mp4"),
        row(5, "walk", "b.png"),
        row(6, "gone.png"),
        row(7, chosen="K", rejected="L", messages=[{"role": "user", "content": "?"}]),
        row(0),
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    age(tmp_path)
    return tmp_path


def age(folder: Path, seconds: float = 60) -> None:
    """Have all files last changed a while ago."""
    then = time.time_ns() - int(seconds * 1e9) + 1
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(then, then))


def opened(folder: Path, cache: Path, look_again: bool = True) -> RowIndex:
    return sealed_index(folder / "rows.jsonl", None, cache, look_again)


def contents(index: RowIndex) -> dict[Use, tuple[list[Sample], list[dataset.BrokenRow], str]]:
    """Samples, broken rows and fingerprint, for every use."""
    found: dict[Use, tuple[list[Sample], list[dataset.BrokenRow], str]] = {}
    for use in USES:
        each = Dataset(index, use)
        found[use] = ([each[number] for number in range(len(each))], each.broken, each.fingerprint)
    return found


def refuse(*_: object) -> None:
    pytest.fail("something was read")


def read_nothing(patch: pytest.MonkeyPatch) -> None:
    """Have every look into a row, an image or a video fail."""
    for module, name in (
        (checking, "parse_row"),
        (checking, "check_medium"),
        (checking, "rows"),
        (sealing, "check_rows"),
        (sealing, "content_hash"),
        (dataset, "content_hash"),
    ):
        patch.setattr(module, name, refuse)


@pytest.mark.parametrize("look_again", [True, False])
def test_a_second_opening_reads_neither_rows_nor_images(
    look_again: bool, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(check_rows(folder / "rows.jsonl"))
    assert contents(opened(folder, cache)) == expected
    assert [each.place.rpartition(":")[2] for each in expected["prompts"][1]] == ["4", "7", "9", "10"]
    monkeypatch.setattr(sealing, "still_broken", lambda *_: True)
    with monkeypatch.context() as patch:
        read_nothing(patch)
        index = opened(folder, cache, look_again)
    assert contents(index) == expected


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row(99)) + "\n")


def rewrite(path: Path) -> None:
    """Change the contents, and neither the size nor the time."""
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Q 0", b"Q !", 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a row more": lambda folder: append(folder / "rows.jsonl"),
    "the same size and time": lambda folder: rewrite(folder / "rows.jsonl"),
    "an image": lambda folder: Image.new("RGB", (8, 8), "white").save(folder / "a.png"),
    "an image is gone": lambda folder: (folder / "b.png").unlink(),
    "an image is damaged": lambda folder: (folder / "b.png").write_bytes(b"\x89PNG"),
    "a video": lambda folder: append(folder / "film.mp4"),
    "a frame": lambda folder: shutil.copy(folder / "walk" / "1.png", folder / "walk" / "3.png"),
    "a frame more": lambda folder: shutil.copy(folder / "walk" / "1.png", folder / "walk" / "99.png"),
    "an image is repaired": lambda folder: shutil.copy(folder / "a.png", folder / "cut.png"),
    "an image is put there": lambda folder: shutil.copy(folder / "a.png", folder / "gone.png"),
    "a broken image is broken otherwise": lambda folder: (folder / "cut.png").write_text("text"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changes_are_noticed(change: Callable[[Path], object], folder: Path, cache: Path) -> None:
    before = contents(opened(folder, cache))
    change(folder)
    after = contents(opened(folder, cache))
    assert after != before
    assert after == contents(check_rows(folder / "rows.jsonl"))
    assert contents(opened(folder, cache, look_again=False)) == after


def test_a_worker_opens_what_its_driver_found_but_for_changed_rows(folder: Path, cache: Path) -> None:
    opened(folder, cache)
    Image.new("RGB", (8, 8), "white").save(folder / "a.png")
    worker = Dataset(opened(folder, cache, look_again=False))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: image '.*a\.png' has changed since the run began"):
        worker[1]
    append(folder / "rows.jsonl")
    assert len(Dataset(opened(folder, cache, look_again=False))) == len(worker) + 1


def test_what_changed_is_noticed_when_it_is_drawn(folder: Path, cache: Path) -> None:
    index = Dataset(opened(folder, cache))
    assert index[3].messages[0].videos
    append(folder / "film.mp4")
    with pytest.raises(DataError, match=r"rows\.jsonl:5: video '.*film\.mp4' has changed"):
        index[3]
    (folder / "a.png").touch()
    assert index[1].messages[0].images
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match=r"rows\.jsonl:3: image 'b\.png' cannot be found"):
        index[2]


def test_only_what_changed_is_looked_at_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder, cache)
    looked: list[object] = []
    check = checking.check_medium
    monkeypatch.setattr(checking, "check_medium", lambda medium: looked.append(medium) or check(medium))
    Image.new("RGB", (8, 8), "white").save(folder / "a.png")
    append(folder / "rows.jsonl")
    opened(folder, cache)
    assert {str(each) for each in looked} == {str(folder / "a.png"), str(folder / "cut.png")}


def test_what_was_only_touched_is_the_same(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(opened(folder, cache))
    age(folder, 30)
    with monkeypatch.context() as patch:
        patch.setattr(sealing, "check_rows", refuse)
        assert contents(opened(folder, cache)) == expected
    monkeypatch.setattr(sealing, "still_broken", lambda *_: True)
    read_nothing(monkeypatch)  # the index has the new times
    opened(folder, cache)


def test_a_file_written_just_now_may_change_unseen(folder: Path, cache: Path) -> None:
    """Within a tick of the file system's clock a second change leaves the time as it is."""
    path, image = folder / "rows.jsonl", folder / "a.png"
    whole_second = (time.time_ns() // 10**9 + 3600) * 10**9  # of a clock that is ahead: no wait would help
    for file in (path, image):
        os.utime(file, ns=(whole_second, whole_second))
    before = opened(folder, cache)
    Image.new("RGB", (8, 8), "white").save(image)
    os.utime(image, ns=(whole_second, whole_second))
    assert not before.settled
    assert opened(folder, cache).fingerprint != before.fingerprint
    rewrite(path)
    assert Dataset(opened(folder, cache))[0].messages[0].text == "Q !"


def index_file(cache: Path) -> Path:
    (file,) = (cache / INDEXES).glob("*.index")
    return file


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
    monkeypatch.setattr("posttrain.data.row_index.FORMAT", 2)
    opened(folder, cache)
    monkeypatch.undo()
    with pytest.raises(IndexFileError, match="no index of the format 1"):
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


OPEN = """
import sys, time
from pathlib import Path
from posttrain.data import checking, sealing
folder, check = Path(sys.argv[1]), checking.check_medium
def told(medium):
    with (folder / "log").open("a") as file:
        file.write("looked\\n")
    time.sleep(0.2)
    return check(medium)
checking.check_medium = told
(folder / f"ready {sys.argv[2]}").touch()
while len(list(folder.glob("ready *"))) < 3:
    time.sleep(0.01)
print(len(sealing.sealed_index(folder / "rows.jsonl", None, folder / "cache", True)))
"""


def test_processes_that_start_together_check_once(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row(n, "a.png", "b.png")) + "\n" for n in range(9)))
    commands = [[sys.executable, "-c", OPEN, str(folder), str(number)] for number in range(3)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["9\n"] * 3
    assert (folder / "log").read_text().splitlines() == ["looked"] * 2
    assert [path.suffix for path in (folder / "cache" / INDEXES).iterdir()] == [".index"]


def test_without_locks_the_last_one_wins(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("posttrain.files.lock.fcntl.flock", unsupported)
    assert contents(opened(folder, cache)) == contents(opened(folder, cache))


def sequential(path: Path, use: Use) -> tuple[list[Sample], list[tuple[int, str]], str]:
    """Check row after row, for one use: samples, lines and reasons of broken rows, fingerprint."""
    digest = hashlib.sha256(path.read_bytes())
    good: list[Sample] = []
    broken: list[tuple[int, str]] = []
    ids, images = set[str](), set[str]()
    with path.open("rb") as file:
        for line, _, content in rows(file):
            try:
                sample = parse_row(content, path.parent, f"{path.name}:{line}")
                if sample.id in ids:
                    raise DataError(
                        f"the id {sample.id!r} is an earlier row's; columns: {{id: null}} numbers rows"
                    )
                for image in (image for message in sample.messages for image in message.images):
                    if image.path not in images:
                        check_image(image.path)
                        images.add(image.path)
                        digest.update(hashlib.sha256(Path(image.path).read_bytes()).digest())
                if (use == "pairs" and not sample.chosen) or (
                    use == "dialogues" and all(message.role != "assistant" for message in sample.messages)
                ):
                    raise DataError(MISFITS[use])
            except (DataError, ImageError) as error:
                broken.append((line, str(error)))
                continue
            ids.add(sample.id)
            good.append(sample)
    return good, broken, digest.hexdigest()


ANY_ROW = st.one_of(
    st.sampled_from(["{", "", "null", '{"messages": []}']),
    st.builds(
        lambda number, names, answered, pair: json.dumps(
            {key: value for key, value in row(number, *names).items() if key != "messages"}
            | {"messages": row(number, *names)["messages"][: 1 + answered]}  # pyright: ignore
            | ({"chosen": "a", "rejected": "b"} if pair else {})
        ),
        st.integers(0, 9),
        st.lists(st.sampled_from(["a.png", "b.png", "c.png", "cut.png", "gone.png"]), max_size=3),
        st.booleans(),
        st.booleans(),
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_ROW, max_size=12))
def test_fresh_opened_and_checked_one_by_one_are_the_same(
    folder: Path, cache: Path, lines: list[str]
) -> None:
    path = folder / "rows.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    age(folder)
    fresh, again = opened(folder, cache), opened(folder, cache)
    for use in USES:
        good, broken, fingerprint = sequential(path, use)
        for index in (fresh, again):
            each = Dataset(index, use)
            assert [each[number] for number in range(len(each))] == good
            assert each.broken == [dataset.BrokenRow(f"{path}:{line}", why) for line, why in broken]
            if use == "prompts":
                assert each.fingerprint == fingerprint
