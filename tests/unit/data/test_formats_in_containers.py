"""Every form in every container: JSON lines and lists, Parquet, Hugging Face datasets; filters, images."""

import base64
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from posttrain.config import DatasetConfig
from posttrain.data import sources
from posttrain.data.formats import DataError
from posttrain.data.sources import load_samples
from posttrain.types import text_message
from tests.unit.data.test_formats_of_others import ONE_TURN, asked, encoded
from tests.unit.data.test_formats_of_others import folder as folder


def configured(path: Path, format_name: str, **options: Any) -> DatasetConfig:
    source = {"path": str(path)} | options.pop("source", {})
    fixed = {"name": "rows", "description": "Rows.", "licence": "CC0-1.0"}
    return DatasetConfig.model_validate(fixed | {"source": source, "format": format_name} | options)


def stored(folder: Path, container: str, rows: list[dict[str, Any]]) -> Path:
    """Rows in a container."""
    path = folder / f"rows.{container}"
    if container == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif container == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif container == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    else:
        path = folder / "saved"
        datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize("container", ["jsonl", "json", "parquet", "arrow"])
@pytest.mark.parametrize("format_name", ONE_TURN)
def test_every_form_in_every_container(folder: Path, container: str, format_name: str):
    rows = [ONE_TURN[format_name] | {"number": number} for number in range(150)]
    path = stored(folder, container, rows)
    # Canonical lines are read as they stand, so that each needs an id of its own; this has them rewritten.
    config = configured(path, format_name, source={"images": str(folder)}, columns={"id": None})
    dataset = load_samples(config, folder, folder / "c")
    assert len(dataset) == 150
    assert dataset[149].messages == (asked(folder), text_message("assistant", "Red."))
    assert dataset[149].columns == {"number": 149}
    assert dataset[149].id.endswith(":150")


def test_images_inside_rows_become_files(folder: Path):
    url = f"data:image/png;base64,{base64.b64encode(encoded('red')).decode()}"
    pictures = [{"bytes": encoded("red"), "path": "x.png"}, {"bytes": None, "path": str(folder / "a.png")}]
    rows = [{"problem": "<image>?", "answer": "1", "images": [picture]} for picture in pictures]
    parquet = load_samples(configured(stored(folder, "parquet", rows), "easyr1"), folder, folder / "c")
    features = datasets.Features({"problem": datasets.Value("string"), "images": [datasets.Image()]})
    saved = datasets.Dataset.from_list(
        [{"problem": "<image>?", "images": [{"bytes": encoded("red")}]}], features
    )
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(folder / "hub")
    hub = configured(folder / "hub", "easyr1", source={"split": "test"})
    block = {"type": "image_url", "image_url": {"url": url}}
    openai = stored(folder, "jsonl", [{"messages": [{"role": "user", "content": [block]}]}])
    samples = [
        *(parquet[index] for index in range(2)),
        load_samples(hub, folder, folder / "c")[0],
        load_samples(configured(openai, "openai"), folder, folder / "c")[0],
    ]
    for sample in samples:
        with Image.open(sample.messages[0].images[0].path) as found:
            assert found.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(DataError, match=r"has the splits test, train; set source.split"):
        load_samples(configured(folder / "hub", "easyr1"), folder, folder / "c")


def test_images_that_are_refused_say_why(folder: Path):
    bad = [
        "http://example.com/a.png",
        "data:image/png;base64,%%%",
        "data:image/png;base64,aGVsbG8=",
        "data:text/html,<p>",
        "../../a.png",
        "none.png",
    ]
    rows = [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]} for url in bad
    ]
    path = stored(folder, "jsonl", rows)
    with pytest.raises(DataError, match="6 of 6 rows are broken"):
        load_samples(configured(path, "openai"), folder, folder / "c")
    dataset = load_samples(configured(path, "openai"), folder, folder / "c", max_bad_share=1.0)
    reasons = {int(row.place.rpartition(":")[2]): row.reason for row in dataset.broken}
    wanted = [
        "is a URL; download it",
        "not base64",
        "damaged or none of",
        "not of the form",
        "leads out of",
        "cannot be found",
    ]
    assert all(part in reasons[number] for number, part in enumerate(wanted, start=1))
    assert all(row.place.startswith(str(path)) for row in dataset.broken)
    assert not list((folder / "c").glob("**/*.tmp"))


def test_an_image_that_arrives_later_repairs_its_row(folder: Path):
    rows = [{"problem": "<image>?", "images": [name]} for name in ("a.png", "late.png")]
    config = configured(stored(folder, "jsonl", rows), "easyr1")
    assert len(load_samples(config, folder, folder / "c", max_bad_share=0.5)) == 1
    (folder / "late.png").write_bytes(encoded("red"))
    sources.forget_opened()
    assert len(load_samples(config, folder, folder / "c")) == 2


def test_dataset_info_tells_file_columns_and_tags(folder: Path):
    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "Red."}]
    (folder / "demo.json").write_text(json.dumps([{"messages": turns, "images": ["a.png"]}]))
    entry = {
        "file_name": "demo.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    }
    (folder / "dataset_info.json").write_text(json.dumps({"demo": entry, "hub": {"hf_hub_url": "a/b"}}))
    config = configured(folder / "dataset_info.json", "llama_factory", source={"entry": "demo"})
    assert load_samples(config, folder, folder / "c")[0].messages[0] == asked(folder)
    for name, reason in (("demi", "has no data set 'demi'"), ("hub", "no file_name")):
        config = configured(folder / "dataset_info.json", "llama_factory", source={"entry": name})
        with pytest.raises(DataError, match=reason):
            load_samples(config, folder, folder / "c")


def test_filters_keep_what_passes_and_count_the_rest(folder: Path):
    rows = [
        {"prompt": "Q" * number, "completion": "A", "level": number, "lang": "en" if number % 2 else "de"}
        for number in range(1, 101)
    ]
    path = stored(folder, "jsonl", rows)
    filters = [
        {"column": "prompt", "max_length": 50},
        {"column": "level", "min": 11},
        {"column": "lang", "equals": "en"},
    ]
    dataset = load_samples(configured(path, "trl", filters=filters), folder, folder / "c")
    assert [sample.columns["level"] for sample in dataset] == list(range(11, 51, 2))  # pyright: ignore[reportGeneralTypeIssues]
    assert dataset.filtered == 80
    misspelt = configured(path, "trl", filters=[{"column": "langage", "equals": "en"}])
    with pytest.raises(DataError, match=r"no row has a column 'langage'"):
        load_samples(misspelt, folder, folder / "c")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"columns": {"mesages": "a"}}, "the format trl has no such column"),
        ({"columns": {"messages": None}}, "only id may be null"),
        ({"tags": {"role_tag": "a"}}, "no such tag"),
        ({"filters": [{"column": "a"}]}, "keeps every row"),
        ({"source": {"entry": "a"}}, "go together"),
    ],
)
def test_settings_that_do_nothing_are_errors(folder: Path, options: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        configured(folder, "trl", **options)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", '[{"problem": "a"}, {"prob', "no JSON list"),
        ("a.json", '[{"problem": "a"}', "breaks off"),
        ("a.txt", "", "must end in one of"),
        ("a.parquet", "PAR1", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(folder: Path, name: str, content: str, reason: str):
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=reason):
        load_samples(configured(folder / name, "easyr1"), folder, folder / "c")


def test_a_folder_of_files_and_its_split(folder: Path):
    for name in ("train-0", "train-1", "test-0"):
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([{"problem": name}]), folder / f"{name}.parquet"
        )
    config = configured(folder, "easyr1", source={"split": "train"})
    dataset = load_samples(config, folder, folder / "c")
    assert [(sample.id, sample.messages[0].text) for sample in dataset] == [  # pyright: ignore[reportGeneralTypeIssues]
        ("train-0.parquet:1", "train-0"),
        ("train-1.parquet:1", "train-1"),
    ]
