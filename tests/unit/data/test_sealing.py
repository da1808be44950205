"""A dataset is checked once: what the index keeps, when it is used, and when it is made again."""

import errno
import hashlib
import json
import os
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

from posttrain.config import DatasetConfig
from posttrain.config.data import Use
from posttrain.data import checking, dataset, sealing
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset
from posttrain.data.formats import DataError, parse_row, rows
from posttrain.data.row_index import USES
from posttrain.data.sealing import INDEXES
from posttrain.data.sources import forget_opened, load_samples
from posttrain.data.uses import MISFITS
from posttrain.media.images import ImageError, check_image
from posttrain.types import Sample
from tests.unit.data.sample_rows import age, append, contents, opened, rewrite, row


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


def test_a_link_that_leads_elsewhere_is_noticed_and_checked_at_the_next_start(
    folder: Path, cache: Path
) -> None:
    """Even where the other file has the same size and time."""
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    for name, colour in (("one", "red"), ("two", "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / name / "p.bmp")
        os.utime(folder / name / "p.bmp", (1_000_000_000, 1_000_000_000))
    (folder / "images").symlink_to("one")
    row = {"messages": [{"role": "user", "content": "<image>?"}], "images": ["images/p.bmp"]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    before = Dataset(opened(folder, cache))
    assert before[0].messages
    (folder / "images").unlink()
    (folder / "images").symlink_to("two")
    with pytest.raises(DataError, match="has changed since the run began"):
        Dataset(opened(folder, cache))[0]
    after = Dataset(opened(folder, cache))
    assert after[0].messages
    assert after.fingerprint != before.fingerprint


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


def test_a_process_looks_at_images_once_whatever_the_use(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"path": str(folder / "rows.jsonl")}
    config = DatasetConfig.model_validate(
        {"name": "rows", "description": "Rows.", "licence": "MIT", "source": source, "max_bad_share": 1.0}
    )
    load_samples(config, folder)
    forget_opened()
    looks: list[int] = []
    look = sealing._new_times
    monkeypatch.setattr(sealing, "_new_times", lambda *batch: looks.append(1) or look(*batch))
    loaded = {use: load_samples(config, folder, use=use) for use in USES}
    assert looks == [1]
    assert {use: len(each) for use, each in loaded.items()} == {
        "prompts": 6,
        "episodes": 1,
        "dialogues": 5,
        "pairs": 1,
    }


OPEN = """
import sys, time
from pathlib import Path
from posttrain.config import DatasetConfig
from posttrain.config.data import Use
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
                roles = [message.role for message in sample.messages]
                lacks = {
                    "pairs": not sample.chosen,
                    "dialogues": "assistant" not in roles,
                    "episodes": roles[-1] == "assistant",
                }
                if lacks.get(use):
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
