import gc
import json
import pickle
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain.config import ConfigError, DatasetConfig
from posttrain.config.data import Use
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset
from posttrain.data.formats import DataError, read_canonical
from posttrain.data.mixing import Mixture
from posttrain.data.sealing import INDEXES
from posttrain.data.sources import load_samples, open_mixture, row_lengths
from posttrain.files.durable import DiskFull
from posttrain.plugins import PluginError
from posttrain.types import Sample

GENERATOR = """
import json

def write(directory, *, count, fail=False):
    (directory / "runs").write_text("")
    with (directory / "data.jsonl").open("w") as file:
        for number in range(count):
            message = {"role": "user", "content": f"Question {number}"}
            file.write(json.dumps({"id": str(number), "messages": [message]}) + "\\n")
            if fail and number == 1:
                raise RuntimeError("out of questions")

def forgets(directory):
    pass

def fills(directory):
    raise OSError(28, "No space left on device")
"""


def text_row(number: int, **changes: Any) -> str:
    return json.dumps({"id": str(number), "messages": [{"role": "user", "content": f"Q {number}"}]} | changes)


def image_row(number: int, path: str) -> str:
    content = [{"type": "image", "image": path}]
    return text_row(number, messages=[{"role": "user", "content": content}])


def write_rows(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def configured(name: str = "numbers", **source: Any) -> DatasetConfig:
    return DatasetConfig.model_validate(
        {"name": name, "description": "Numbers.", "licence": "CC0-1.0", "source": source}
    )


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "gen.py").write_text(GENERATOR)
    return tmp_path


def test_a_dataset_by_name(tmp_path: Path):
    (tmp_path / "datasets_cfg").mkdir()
    document = "name: mine\ndescription: Mine.\nlicence: MIT\nsource: {path: ../rows.jsonl}\n"
    (tmp_path / "datasets_cfg" / "mine.yaml").write_text(document)
    write_rows(tmp_path / "rows.jsonl", [text_row(0), text_row(1)])
    dataset = load_samples("mine", tmp_path)
    assert [sample.id for sample in dataset] == ["0", "1"]  # pyright: ignore[reportGeneralTypeIssues]
    assert load_samples("mine", tmp_path) is dataset
    mixture = open_mixture({"mine": 1.0}, 0, tmp_path)
    assert len(mixture) == 2
    with pytest.raises(ConfigError, match="mine"):
        load_samples("mein", tmp_path)


def test_the_fingerprint_is_the_files(tmp_path: Path):
    path = write_rows(tmp_path / "a.jsonl", [text_row(0)])
    first = Dataset(check_rows(path)).fingerprint
    assert first == Dataset(check_rows(write_rows(tmp_path / "b.jsonl", [text_row(0)]))).fingerprint
    assert first != Dataset(check_rows(write_rows(path, [text_row(1)]))).fingerprint


def test_a_dataset_that_changes_under_way_is_noticed(tmp_path: Path):
    path = write_rows(tmp_path / "a.jsonl", [text_row(0)])
    dataset = load_samples(configured(path=str(path)), tmp_path)
    write_rows(path, [text_row(0), text_row(1)])
    with pytest.raises(DataError, match=r"a\.jsonl:1: the file has changed"):
        dataset[0]
    assert len(load_samples(configured(path=str(path)), tmp_path)) == 2


def test_an_image_that_vanishes_is_named(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    dataset = Dataset(check_rows(write_rows(tmp_path / "a.jsonl", [image_row(0, "a.png")])))
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.jsonl:1: image 'a.png' cannot be found"):
        dataset[0]


def test_rows_without_an_id_are_called_after_their_place(tmp_path: Path):
    rows = [json.loads(text_row(number)) for number in range(3)]
    del rows[0]["id"], rows[2]["id"]
    path = write_rows(tmp_path / "a.jsonl", [json.dumps(row) for row in rows] + [text_row(0, id=7), "{"])
    dataset = Dataset(check_rows(path))
    names = ["a.jsonl:1", rows[1]["id"], "a.jsonl:3", "7"]
    assert [dataset[index].id for index in range(len(dataset))] == names
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    assert [sample.id for sample in read_canonical(path)] == names


def test_it_can_be_sent_to_another_process(tmp_path: Path):
    dataset = Dataset(check_rows(write_rows(tmp_path / "a.jsonl", [text_row(0), text_row(1)])))
    assert pickle.loads(pickle.dumps(dataset))[1] == dataset[1]


def broken_rows(folder: Path) -> list[str]:
    """One row of every kind of damage."""
    Image.new("RGB", (1, 5_000)).save(folder / "thin.png")
    Image.effect_noise((64, 64), 50).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-700])
    (folder / "empty.png").write_bytes(b"")
    (folder / "drawing.svg").write_text("<svg/>")
    images = [
        "thin.png",
        "cut.jpg",
        "empty.png",
        "drawing.svg",
        "none.png",
        "../../secret.png",
        "http://a/b.png",
    ]
    return [
        "{",
        "null",
        text_row(0, id="3"),  # the id of an earlier row
        text_row(0, messages=[]),
        text_row(0, messages=[{"role": "bot", "content": "hi"}]),
        *(image_row(0, path) for path in images),
    ]


def test_ten_thousand_rows_with_five_percent_broken_are_counted_exactly(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    kinds = broken_rows(tmp_path)
    bad_lines = set(range(20, 10_001, 20))
    lines = [
        kinds[number % len(kinds)] if number in bad_lines else image_row(number, "good.png")
        for number in range(1, 10_001)
    ]
    path = write_rows(tmp_path / "rows.jsonl", lines)
    with pytest.raises(DataError, match=r"500 of 10,000 rows (?s:.*)1.0%(?s:.*)rows\.jsonl:20: "):
        load_samples(configured(path=str(path)), tmp_path)
    dataset = load_samples(configured(path=str(path)), tmp_path, max_bad_share=0.05)
    assert len(dataset) == 9_500
    assert {int(row.place.rsplit(":", 1)[1]) for row in dataset.broken} == bad_lines
    assert all(row.reason for row in dataset.broken)
    assert dataset[19].id == "21"


def test_few_broken_rows_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write_rows(tmp_path / "rows.jsonl", [text_row(number) for number in range(99)] + ["{"])
    dataset = load_samples(configured(path=str(path)), tmp_path)
    assert len(dataset) == 99
    assert "1 of 100 rows are broken and were left out" in caplog.text
    assert "rows.jsonl:100: not valid JSON" in caplog.text


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"path": "none.jsonl"}, "none.jsonl is not a file"),
        ({"path": "empty.jsonl"}, "has no rows"),
        ({"path": "none"}, "none is not a file or a folder"),
        ({"path": "${NO_SUCH_VARIABLE}/a.jsonl"}, "NO_SUCH_VARIABLE"),
        ({"generator": "gen.py:write"}, r"gen.py:write\(\) failed with TypeError.*'count'"),
        ({"generator": "gen.py:write", "params": {"count": 3, "fail": True}}, "out of questions"),
        ({"generator": "gen.py:forgets"}, r"data\.jsonl"),
    ],
)
def test_data_that_cannot_be_had(plugin: Path, source: dict[str, Any], reason: str):
    (plugin / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=reason) as caught:
        load_samples(configured(**source), plugin, plugin / "cache")
    assert "dataset numbers" in str(caught.value)
    assert {path.name for path in plugin.glob("cache/*")} <= {INDEXES}


def test_a_full_disk_is_said(plugin: Path):
    with pytest.raises(DiskFull, match="numbers"):
        load_samples(configured(generator="gen.py:fills"), plugin, plugin / "cache")
    with pytest.raises(PluginError, match="did you mean 'write'"):
        load_samples(configured(generator="gen.py:wirte"), plugin, plugin / "cache")


def test_a_generator_runs_once_for_its_params_and_code(plugin: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(plugin / "cache"))
    config = configured(generator="gen.py:write", params={"count": 3})
    first = load_samples(config, plugin)
    assert len(first) == 3
    assert first.path.parent.parent == plugin / "cache"
    assert first.path.parent.name.startswith("numbers-")
    assert load_samples(config, plugin).path == first.path
    other = load_samples(configured(generator="gen.py:write", params={"count": 4}), plugin)
    assert other.path != first.path
    (plugin / "gen.py").write_text(GENERATOR + "\n# changed\n")
    assert load_samples(config, plugin).path not in (first.path, other.path)


LOAD = """
import sys
from pathlib import Path
from posttrain.config import DatasetConfig
from posttrain.data.sources import load_samples
folder = Path(sys.argv[1])
config = DatasetConfig.model_validate_json(sys.argv[2])
print(len(load_samples(config, folder, folder / "cache")))
"""


def test_processes_that_generate_at_once_agree(plugin: Path):
    config = configured(generator="gen.py:write", params={"count": 3000}).model_dump_json()
    command = [sys.executable, "-c", LOAD, str(plugin), config]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["3000\n"] * 4
    assert len(list((plugin / "cache").iterdir())) == 2
    assert len(list((plugin / "cache" / INDEXES).iterdir())) == 1


def test_the_shipped_generator_makes_whole_datasets(tmp_path: Path):
    for kind, tools in [("zoom", ("image_zoom_in",)), ("list", ()), ("question", ())]:
        params = {"kind": kind, "split": "sft", "count": 2}
        dataset = load_samples(configured(generator="marker_scenes", params=params), tmp_path, tmp_path)
        assert len(dataset) >= 2
        assert dataset.broken == []
        assert dataset[0].tools == tools


def test_a_row_costs_a_few_bytes(tmp_path: Path):
    path = write_rows(tmp_path / "rows.jsonl", [text_row(number) for number in range(5_000)])
    check_rows(path)  # imports what it needs
    tracemalloc.start()
    dataset = Dataset(check_rows(path))
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset) == 5_000
    assert held / 5_000 < 30
    assert peak / 5_000 < 300
    assert dataset[4_999].id == "4999"


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Dataset]:
    few = write_rows(tmp_path / "few.jsonl", [text_row(number) for number in range(7)])
    many = write_rows(tmp_path / "many.jsonl", [text_row(number) for number in range(100)])
    return {"few": Dataset(check_rows(few)), "many": Dataset(check_rows(many))}


def test_a_mixture_keeps_its_shares_and_its_epochs(two: dict[str, Dataset]):
    mixture = Mixture(two, {"few": 0.3, "many": 0.7}, seed=0)
    draws = [mixture.index(draw) for draw in range(1000)]
    assert Counter(name for name, _ in draws) == {"few": 300, "many": 700}
    for name, size in (("few", 7), ("many", 100)):
        rows = [row for drawn, row in draws if drawn == name]
        epochs = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_draw_depends_on_nothing_but_its_number(two: dict[str, Dataset]):
    weights = {"few": 0.3, "many": 0.7}
    whole = [Mixture(two, weights, seed=0).index(draw) for draw in range(300)]
    resumed = Mixture(two, dict(reversed(weights.items())), seed=0)
    assert [resumed.index(draw) for draw in reversed(range(300))] == list(reversed(whole))
    assert [Mixture(two, weights, seed=1).index(draw) for draw in range(300)] != whole


@pytest.mark.parametrize(
    ("weights", "reason"),
    [({"few": 1.0}, "the weights are for"), ({"few": 0, "many": 1}, "of few"), ({}, "the weights are for")],
)
def test_a_mixture_that_cannot_be(two: dict[str, Dataset], weights: dict[str, float], reason: str):
    with pytest.raises(DataError, match=reason):
        Mixture(two, weights, seed=0)


def test_an_empty_dataset_cannot_be_mixed(tmp_path: Path):
    empty = Dataset(check_rows(write_rows(tmp_path / "empty.jsonl", [])))
    with pytest.raises(DataError, match="dataset none has no rows"):
        Mixture({"none": empty}, {"none": 1.0}, seed=0)


def test_a_mixture_by_tokens_keeps_its_epochs_and_resumes(two: dict[str, Dataset]):
    lengths = {"few": [500 + row for row in range(7)], "many": [40 + row for row in range(100)]}
    weights = {"few": 0.25, "many": 0.75}
    mixture = Mixture(two, weights, seed=0, lengths=lengths)
    draws = [mixture.index(draw) for draw in range(1000)]
    tokens = Counter[str]()
    for name, row in draws:
        tokens[name] += lengths[name][row]
    assert abs(tokens["few"] / tokens.total() - 0.25) < 506 / tokens.total()
    for name, size in (("few", 7), ("many", 100)):
        rows = [row for drawn, row in draws if drawn == name]
        epochs = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    resumed = Mixture(two, weights, seed=0, lengths=lengths)
    assert [resumed.index(draw) for draw in range(637, 1000)] == draws[637:]


def test_a_mixture_by_tokens_counts_each_row_once(tmp_path: Path):
    rows = [
        text_row(number, messages=[{"role": "user", "content": "Q" * (number + 1)}]) for number in range(9)
    ]
    for name in ("one", "two"):
        write_rows(tmp_path / f"{name}.jsonl", rows if name == "one" else rows[:3])
        document = f"name: {name}\ndescription: Q.\nlicence: MIT\nsource: {{path: {name}.jsonl}}\n"
        (tmp_path / f"{name}.yaml").write_text(document)

    class Letters:
        identity = "characters"
        counted = 0

        def __call__(self, sample: Sample) -> int:
            self.counted += 1
            return len(sample.messages[0].text)

    counter = Letters()
    weights = {str(tmp_path / "one.yaml"): 0.5, str(tmp_path / "two.yaml"): 0.5}
    mixture = open_mixture(weights, 0, tmp_path, tmp_path / "cache", counter)
    tokens = dict.fromkeys(weights, 0)
    for draw in range(500):
        name, row = mixture.index(draw)
        tokens[name] += row + 1
    assert abs(tokens[str(tmp_path / "one.yaml")] - sum(tokens.values()) / 2) < 9
    open_mixture(weights, 0, tmp_path, tmp_path / "cache", counter)
    assert counter.counted == 12


def test_lengths_are_counted_for_each_use_and_again_where_they_are_damaged(tmp_path: Path):
    asked = [{"role": "user", "content": "Q"}]
    answered = [*asked, {"role": "assistant", "content": "A"}]
    path = write_rows(tmp_path / "a.jsonl", [text_row(0), text_row(1, messages=answered)])
    index = check_rows(path)

    class Turns:
        identity = "turns"

        def __call__(self, sample: Sample) -> int:
            return len(sample.messages)

    uses: list[tuple[Use, list[int]]] = [("prompts", [1, 2]), ("dialogues", [2])]
    for use, expected in uses:
        lengths = row_lengths({"a": Dataset(index, use)}, Turns(), tmp_path / "cache")
        assert list(lengths["a"]) == expected
    for damage in (b"", b"abc", bytes(400)):
        for file in (tmp_path / "cache").glob("lengths-*/*.bin"):
            file.write_bytes(damage)
        assert list(row_lengths({"a": Dataset(index)}, Turns(), tmp_path / "cache")["a"]) == [1, 2]
