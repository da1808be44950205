"""Datasets of the Hub: used where its cache has them, else told how to fetch; nothing is fetched."""

import json
import os
import socket
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.config import ConfigError, load_dataset_config
from posttrain.config.hub import hub_dataset
from posttrain.data.formats import DataError
from posttrain.data.sources import load_samples

ROW = {
    "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A mug."}],
    "images": ["images/a.png"],
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache with photos/mugs as `snapshot_download` leaves it, and no network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "datasets--photos--mugs"
    for place in ("refs", "blobs", "snapshots/c0ffee/images", "snapshots/c0ffee/more"):
        (repository / place).mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    (repository / "blobs" / "11aa").write_text(json.dumps(ROW) + "\n")
    Image.new("RGB", (32, 32)).save(repository / "blobs" / "22bb", format="PNG")
    snapshot = repository / "snapshots" / "c0ffee"
    (snapshot / "train.jsonl").symlink_to("../../blobs/11aa")
    (snapshot / "images" / "a.png").symlink_to("../../../blobs/22bb")
    (snapshot / "more" / "rows.jsonl").symlink_to("../../../blobs/11aa")
    (snapshot / "README.md").write_text("mugs")
    return tmp_path


def dataset_file(folder: Path, path: str, **source: str) -> Path:
    told = {"name": "mugs", "description": "d", "licence": "CC0-1.0", "format": "ms_swift"}
    file = folder / "mugs.yaml"
    file.write_text(yaml.safe_dump(told | {"source": {"path": path, **source}}))
    return file


@pytest.mark.parametrize(
    "path",
    [
        *("photos/mugs", "photos/mugs/", "photos/mugs/train.jsonl", "photos/mugs@main", "photos/mugs@c0ffee"),
        *("hf://datasets/photos/mugs", "hf://datasets/photos/mugs@main/train.jsonl"),
        *("https://huggingface.co/datasets/photos/mugs", "hf://datasets/photos/mugs@c0ffee"),
        "https://huggingface.co/datasets/photos/mugs/tree/main",
        "https://huggingface.co/datasets/photos/mugs/blob/main/train.jsonl",
    ],
)
def test_what_the_cache_has_is_used(hub: Path, path: str):
    file = dataset_file(hub, path, **({} if path.endswith(".jsonl") else {"split": "train"}))
    dataset = load_samples(str(file), hub, hub / "cache")
    snapshot = hub / "hub" / "datasets--photos--mugs" / "snapshots" / "c0ffee"
    assert dataset[0].messages[0].images[0].path == str(snapshot / "images" / "a.png")
    assert dataset[0].messages[1].text == "A mug."


def test_a_folder_beside_the_yaml_comes_before_the_cache(hub: Path):
    (hub / "photos" / "mugs" / "images").mkdir(parents=True)
    (hub / "photos" / "mugs" / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    Image.new("RGB", (32, 32)).save(hub / "photos" / "mugs" / "images" / "a.png")
    dataset = load_samples(str(dataset_file(hub, "photos/mugs")), hub, hub / "cache")
    assert dataset[0].messages[0].images[0].path == str(hub / "photos" / "mugs" / "images" / "a.png")


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("photos/cups", "hf download photos/cups --repo-type dataset --local-dir {folder}/photos/cups"),
        (
            "photos/mugs@v2",
            "hf download photos/mugs --repo-type dataset --revision v2 --local-dir {folder}/photos/mugs@v2",
        ),
        ("hf://datasets/photos/cups", "hf download photos/cups --repo-type dataset"),
        ("hf://datasets/photos/mugs@v2", "hf download photos/mugs --repo-type dataset --revision v2"),
        (
            "https://huggingface.co/datasets/photos/cups/tree/dev/a",
            "hf download photos/cups --repo-type dataset --revision dev",
        ),
        ("data/train.jsonl", None),
        ("./photos/cups.json", None),
    ],
)
def test_what_it_lacks_is_not_fetched_but_told(hub: Path, path: str, command: str | None):
    with pytest.raises(DataError, match="is not a file or a folder") as refused:
        load_samples(str(dataset_file(hub, path)), hub, hub / "cache")
    told = str(refused.value)
    if command is None:
        assert "hf download" not in told
    else:
        assert command.format(folder=hub) in told
        assert "nothing is fetched by itself" in told


def test_the_command_that_is_told_puts_rows_where_they_are_found(hub: Path):
    """As if the command had been run: the folder that it names is where the same YAML looks."""
    file = dataset_file(hub, "photos/cups")
    with pytest.raises(DataError) as refused:
        load_samples(str(file), hub, hub / "cache")
    folder = Path(str(refused.value).rpartition("--local-dir ")[2])
    (folder / "images").mkdir(parents=True)
    (folder / "train.jsonl").write_text(json.dumps(ROW) + "\n")
    Image.new("RGB", (32, 32)).save(folder / "images" / "a.png")
    assert len(load_samples(str(file), hub, hub / "cache")) == 1


@pytest.mark.parametrize(
    "name", ["photos/cups", "photos/mugs", "hf://datasets/photos/mugs", "photos/my mugs"]
)
def test_a_name_of_the_hub_is_no_dataset_but_tells_which_yaml_makes_it_one(hub: Path, name: str):
    with pytest.raises(ConfigError, match="there is no such dataset") as refused:
        load_dataset_config(name, hub)
    told = str(refused.value)
    if " " in name:
        assert "ends in .yaml" in told
        return
    assert ("hf download photos/cups --repo-type dataset" in told) == (name == "photos/cups")
    own = name.rpartition("/")[2]
    assert f"write {hub}/datasets_cfg/{own}.yaml with name: {own}" in told
    assert f"source: {{path: {name}}}" in told
    (hub / "datasets_cfg").mkdir()
    dataset_file(hub, name).rename(hub / "datasets_cfg" / f"{own}.yaml")
    assert load_dataset_config(own, hub).name == "mugs"


@pytest.mark.parametrize("place", ["photos", "datasets_cfg/photos"])
def test_a_yaml_in_a_folder_is_named_by_its_path(hub: Path, place: str):
    (hub / place).mkdir(parents=True)
    dataset_file(hub / place, "photos/mugs")
    with pytest.raises(ConfigError, match=rf"did you mean {place}/mugs\.yaml\?"):
        load_dataset_config("photos/mugs", hub)
    assert load_dataset_config(f"{place}/mugs.yaml", hub).name == "mugs"


@pytest.mark.parametrize(
    "written",
    ["", "/", "a//b", "../a", "a/../b", "a b/c", "~/a", "$X/a", "hf://datasets/", "a/b@", "a//" * 4000],
)
def test_what_cannot_be_a_name_of_the_hub(written: str):
    assert hub_dataset(written) is None


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab./@:-~$ \\hf", max_size=30), st.sampled_from(["", "hf://datasets/", "hf://datasets/a/b/blob/"])
)
def test_no_name_leads_out_of_the_cache(written: str, before: str):
    dataset = hub_dataset(before + written)
    if dataset is not None:
        inside = os.path.normpath(Path("/cache") / "snapshots" / dataset.revision / dataset.inside)
        assert inside.startswith("/cache/snapshots/")
        assert "/" not in dataset.name.replace("/", "", 1)
