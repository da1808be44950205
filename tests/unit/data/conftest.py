"""What the tests of data share."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from posttrain.types import VideoRef
from tests.unit.data.sample_rows import age, row


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of a test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("POSTTRAIN_CACHE", str(folder))
    return folder


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
