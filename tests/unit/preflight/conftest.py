"""A folder with datasets of several kinds, and the look that `posttrain validate` takes at a run on them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain.config import ConfigError, Document, build_run
from posttrain.config.host_memory import Host
from posttrain.first_party import PLUGINS
from posttrain.preflight.examination import Findings, examine

ASK = {"role": "user", "content": "What is it?"}
TELL = {"role": "assistant", "content": "A cup"}
SHOW = {"role": "user", "content": "<image>What is it?"}
ROWS: dict[str, dict[str, Any]] = {
    "prompts": {"messages": [ASK], "ground_truth": "A cup"},
    "goldless": {"messages": [ASK]},
    "dialogues": {"messages": [ASK, TELL]},
    "pairs": {"messages": [ASK], "chosen": "A cup", "rejected": "A mug"},
    "pictures": {"messages": [SHOW, TELL], "images": ["cup.png"], "ground_truth": "A cup"},
    "lost": {"messages": [SHOW, TELL], "images": ["gone.png"]},
    "tooled": {"messages": [ASK, TELL], "tools": ["image_zoom_in"]},
    "mistooled": {"messages": [ASK, TELL], "tools": ["image_zoom_inn"]},
    "films": {"messages": [{"role": "user", "content": "<video>What?"}], "videos": ["film.mp4"]},
    "twins": {"id": "one", "messages": [ASK, TELL]},
}
#: More YAML of datasets that have another's rows.
SETTINGS = {
    "miscolumned": ("prompts", "format: easyr1\n"),
    "filtered": ("dialogues", "filters: [{column: response, min_length: 1000}]\n"),
}
Look = Callable[..., Findings]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Datasets of four rows each, by the names of `ROWS` and `SETTINGS`."""
    datasets = tmp_path / "datasets_cfg"
    datasets.mkdir()
    (datasets / "film.mp4").touch()
    Image.new("RGB", (40, 30)).save(datasets / "cup.png")
    for name, row in ROWS.items():
        rows = [row if "id" in row else {"id": str(number)} | row for number in range(4)]
        (datasets / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    for name, (rows_of, more) in ({name: (name, "") for name in ROWS} | SETTINGS).items():
        text = f"name: {name}\ndescription: d\nlicence: MIT\nsource: {{path: {rows_of}.jsonl}}\n{more}"
        (datasets / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.fixture
def look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Examine a run of some stages, and whatever else is to be in its YAML."""
    monkeypatch.delenv("POSTTRAIN_ENDPOINT_URL", raising=False)

    def examined(*stages: dict[str, Any], **run: object) -> Findings:
        model = {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}
        data = {"name": "mine", "base_dir": str(folder), "output_dir": str(folder / "runs"), "model": model}
        document = Document(data | {"stages": list(stages)} | run, "mine.yaml")
        try:
            return examine(build_run(document), document, PLUGINS)
        except ConfigError as error:
            return Findings(error.problems)

    return examined


@pytest.fixture(autouse=True)
def large_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose memory holds every run; who looks at it sets another."""
    monkeypatch.setattr("posttrain.preflight.host.host_here", lambda: Host(2.0**41, 2.0**40))
