"""Which files of a folder are a dataset's: splits and kinds are asked for, never mixed in silence."""

import json
import logging
from pathlib import Path, PurePath

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset as HuggingFace
from datasets import DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.config import DatasetConfig
from posttrain.data.containers import raw_rows
from posttrain.data.formats import DataError
from posttrain.data.row_files import data_files
from posttrain.data.sources import load_samples
from posttrain.data.splits import split_of

DIGEST = "a09b74b3ef9c3b56"


def part(split: str) -> str:
    """The name of a part as the Hub has it."""
    return f"{split}-00000-of-00001.parquet"


def write(folder: Path, *names: str) -> None:
    """Write a row into each file, which says the file's name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": name}]}
        if path.suffix.lower() == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        else:
            path.write_text(json.dumps([row] if path.suffix.lower() == ".json" else row) + "\n")


def taken(folder: Path, split: str | None = None) -> set[str]:
    return {str(file.relative_to(folder)) for file in data_files(folder, split)}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("train-00000-of-00002.parquet", "train"),
        (f"data/train-00000-of-00001-{DIGEST}.parquet", "train"),
        ("train_sft-00000-of-00001.parquet", "train_sft"),
        ("choice-00000-of-00001.parquet", "choice"),
        ("data/train/0000.parquet", "train"),
        ("default/partial-train/0000.parquet", "train"),
        ("en/test/a.json", "test"),
        ("test/train_stations.jsonl", "test"),
        ("Test.JSONL", "test"),
        ("my.dev.jsonl", "dev"),
        ("MathVista_testmini.json", "testmini"),
        ("OpenEnded_mscoco_val2014_questions.json", "val"),
        ("vqa_trainval.json", "trainval"),
        ("LLaVA-TrainSet.jsonl", "train"),
        ("LLaVA_trainset.jsonl", "trainset"),
        ("squadValid.jsonl", "valid"),
        ("evaluation/x.jsonl", "evaluation"),
        ("rows.jsonl", None),
        ("restraint.jsonl", None),
        ("contest/latest.jsonl", None),
        ("evaluate.jsonl", None),
        ("2024-01-test.jsonl", "test"),
    ],
)
def test_names_say_a_split(name: str, split: str | None):
    found = split_of(PurePath(name))
    assert (found.name if found else None) == split


@pytest.mark.parametrize(
    ("names", "split", "wanted"),
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["train.jsonl", "test.jsonl"], "TRAIN", ["train.jsonl"]),
        (["train.jsonl", "val.jsonl", "notes.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "val.jsonl"], "validation", ["val.jsonl"]),
        (["a/train/x.jsonl", "a/eval/x.jsonl"], "train", ["a/train/x.jsonl"]),
        (
            ["en/test.jsonl", "en/train.jsonl", "de/train.jsonl"],
            "train",
            ["de/train.jsonl", "en/train.jsonl"],
        ),
        (["test/a.json", "dev/a.json"], "dev", ["dev/a.json"]),
        ([part("testmini"), part("test")], "test", [part("test")]),
        ([part("train_sft"), part("test_sft")], "train_sft", [part("train_sft")]),
        ([part("train_a"), part("train_b")], "train", [part("train_a"), part("train_b")]),
        (["train.jsonl", "val.jsonl", "test.jsonl"], "train+val", ["train.jsonl", "val.jsonl"]),
        (["train.parquet", "test.jsonl"], "train", ["train.parquet"]),
        (["coco_train2017/a.jsonl", "coco_val2017/a.jsonl"], "val", ["coco_val2017/a.jsonl"]),
        (
            ["driving_test.jsonl", "train_rides.jsonl"],
            "test+train",
            ["driving_test.jsonl", "train_rides.jsonl"],
        ),
        (["Train.jsonl", "holdout.jsonl"], "train", ["Train.jsonl"]),
    ],
)
def test_a_folder_of_several_splits_asks_and_takes_the_one_named(
    tmp_path: Path, names: list[str], split: str, wanted: list[str]
):
    write(tmp_path, *names)
    with pytest.raises(DataError, match=r"holds several splits: .*set source\.split") as refused:
        data_files(tmp_path)
    assert all(
        f"{found.name} (" in str(refused.value) for name in names if (found := split_of(PurePath(name)))
    )
    assert taken(tmp_path, split) == set(wanted)


@pytest.mark.parametrize(
    "names",
    [
        ["a.jsonl", "b.jsonl"],
        ["train.jsonl"],
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train_0.jsonl", "train_1.jsonl"],
        ["training/a.jsonl", "train/b.jsonl"],
        ["train.jsonl", "more.jsonl"],
        ["test/a.jsonl", "test/b/c.jsonl"],
        ["llava-00000-of-00001.parquet", "sharegpt-00000-of-00001.parquet"],
        ["train/test_bench.jsonl", "train/dev_tools.jsonl"],
    ],
)
def test_a_folder_of_one_split_or_none_is_read_whole(tmp_path: Path, names: list[str]):
    write(tmp_path, *names)
    assert taken(tmp_path) == set(names)


@pytest.mark.parametrize("split", ["trian", "test", "train+test", "", "train+"])
def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, split: str):
    write(tmp_path, "train.jsonl", "val.jsonl")
    with pytest.raises(DataError, match=r"has no split .*; it holds train \(1 file\), val \(1 file\)"):
        data_files(tmp_path, split)


def test_names_may_begin_with_the_split(tmp_path: Path):
    write(tmp_path, "part1-a.jsonl", "part1-b.jsonl", "part2-a.jsonl")
    assert taken(tmp_path, "part1") == {"part1-a.jsonl", "part1-b.jsonl"}
    with pytest.raises(DataError, match="no name of a file or folder in it says a split"):
        data_files(tmp_path, "part3")


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["a.parquet", "a.jsonl"], "1 .parquet and 1 .jsonl"),
        (["a.parquet", "deep/a.json", "b.json"], "1 .parquet and 2 .json"),
        (["a.JSONL", "b.json"], "1 .jsonl and 1 .json"),
        (["train.parquet", "train.jsonl"], "1 .parquet and 1 .jsonl"),
    ],
)
def test_files_of_several_kinds_are_not_passed_over_in_silence(tmp_path: Path, names: list[str], kinds: str):
    write(tmp_path, *names)
    with pytest.raises(DataError, match=f"several kinds, {kinds}, .* set source.path"):
        data_files(tmp_path)
    assert data_files(tmp_path / names[0]) == [tmp_path / names[0]]


@pytest.mark.parametrize("text", ['{\n  "fps": 30\n}', '{"features": {}}', "3", '"text"', "[1, 2]"])
def test_a_description_beside_the_rows_is_no_row(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture):
    write(tmp_path, "a.parquet", ".hidden.jsonl", ".cache/b.jsonl")
    (tmp_path / "info.json").write_text(text)
    (tmp_path / "dataset_infos.json").write_text('[{"is": "no row"}]')
    with caplog.at_level(logging.WARNING):
        assert taken(tmp_path) == {"a.parquet"}
    assert "info.json passed over" in caplog.text


@pytest.mark.parametrize(
    ("numbers", "told"), [([0, 1, 2], ""), ([0, 2], "1 of 3 of train"), ([1], "2 of 3 of train")]
)
def test_parts_that_are_not_there_are_told(
    tmp_path: Path, numbers: list[int], told: str, caplog: pytest.LogCaptureFixture
):
    """As an interrupted download leaves them, or one of some parts alone."""
    write(tmp_path, *(f"data/train-{number:05}-of-00003.parquet" for number in numbers))
    with caplog.at_level(logging.WARNING):
        assert len(taken(tmp_path)) == len(numbers)
        taken(tmp_path)
    assert caplog.text.count("parts are not there") == bool(told)
    assert told in caplog.text


def test_folders_that_are_links_are_entered_once(tmp_path: Path):
    write(tmp_path / "elsewhere", "b.jsonl")
    write(tmp_path / "data", "a.jsonl")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "data")
    assert taken(tmp_path / "data") == {"a.jsonl", "more/b.jsonl"}


def test_what_there_is_instead_of_rows_is_said(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"has no \.parquet, \.jsonl, \.json file; it has 1 \.csv$"):
        data_files(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"1 \.csv, 1 \.png; rows are JSON lines, .*\"images\""):
        data_files(tmp_path)


@pytest.mark.parametrize("as_dict", [True, False])
def test_splits_of_a_hugging_face_dataset_on_disk_are_chosen(tmp_path: Path, as_dict: bool):
    parts = {name: HuggingFace.from_list([{"n": name}]) for name in ("train", "test", "validation")}
    if as_dict:
        DatasetDict(parts).save_to_disk(tmp_path)  # pyright: ignore[reportCallIssue, reportArgumentType]
    else:
        for name, each in parts.items():
            each.save_to_disk(tmp_path / name)
    with pytest.raises(DataError, match=r"has the splits test, train, validation; set source\.split"):
        list(raw_rows(tmp_path))
    with pytest.raises(DataError, match=r"set source\.split to one of them"):
        data_files(tmp_path, "train+dev")
    rows = [row for _, row in raw_rows(tmp_path, "train+validation")]
    assert rows == [{"n": "train"}, {"n": "validation"}]
    assert len(data_files(tmp_path, "train+validation")) == 2


def test_a_dataset_of_several_splits_is_refused_by_its_name(tmp_path: Path):
    write(tmp_path / "rows", "train.jsonl", "deep/test.jsonl")
    told = {"name": "splits", "description": "d", "licence": "CC0-1.0"}
    source = {"path": str(tmp_path / "rows")}
    with pytest.raises(DataError, match=r"^dataset splits: .*test \(1 file\), train \(1 file\)"):
        load_samples(DatasetConfig.model_validate(told | {"source": source}), tmp_path, tmp_path / "cache")
    config = DatasetConfig.model_validate(told | {"source": source | {"split": "train"}})
    dataset = load_samples(config, tmp_path, tmp_path / "cache")
    assert [dataset[0].messages[1].text, len(dataset)] == ["train.jsonl", 1]


WORDS = st.sampled_from(["train", "Training", "val", "validation", "dev", "test", "eval", "rows", "en", "x1"])
NAMES = st.lists(
    st.tuples(st.lists(WORDS, max_size=2), WORDS, st.sampled_from(["", "_0", "-1.x", "-00000-of-00001"])),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_rows_of_two_splits_are_never_read_together_unasked(
    tmp_path_factory: pytest.TempPathFactory, names: list[tuple[list[str], str, str]]
):
    folder = tmp_path_factory.mktemp("splits")
    files = {"/".join((*folders, f"{stem}{ending}.jsonl")) for folders, stem, ending in names}
    write(folder, *files)
    said = {file: found for file in files if (found := split_of(PurePath(file)))}
    try:
        assert taken(folder) == files
        assert len({found.same for found in said.values() if found.is_known}) <= 1
    except DataError:
        assert len({found.same for found in said.values()}) > 1
    for file, found in said.items():
        assert file in taken(folder, found.name)
        assert {said[each].name for each in taken(folder, found.name)} == {found.name}
