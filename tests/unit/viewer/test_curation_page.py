"""The page of a curation: its numbers, and that hostile rows stay text."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain.types import VideoRef
from posttrain.viewer import ReportError
from posttrain.viewer.curation_page import PER_REASON, PER_STEP, write_curation_page

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>\u202eabc"


def row(name: str, text: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": text}]
    return {"id": name, "messages": [{"role": "user", "content": content}], "ground_truth": 7} | more


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A finished curation of 100 rows, of which one step dropped 40 and another failed on 1."""
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "a.png")
    counts = {"entered": 100, "dropped": 0, "failed": 0, "changed": 0}
    steps: list[dict[str, Any]] = [
        {"name": "read", "filter": "read", "kept": 100, "reasons": {}, **counts},
        {"name": "q", "filter": "query", "kept": 60, "reasons": {f"r{i}": 8 for i in range(5)}},
        {"name": "j", "filter": "reward", "kept": 59, "reasons": {"failed": 1}},
    ]
    steps[1] |= counts | {"dropped": 40, "changed": 3}
    steps[2] |= counts | {"entered": 60, "dropped": 1, "failed": 1}
    funnel = {"name": "sums", "read": 100, "kept": 59, "dropped": 41, "steps": steps}
    (tmp_path / "funnel.json").write_text(json.dumps(funnel))
    with (tmp_path / "dropped.jsonl").open("w") as file:
        for i in range(40):
            verdict = {"step": "q", "reason": f"r{i % 5}", "note": HOSTILE, "scores": {"q": {"chars": 12.5}}}
            file.write(json.dumps(row(f"d{i}", HOSTILE, dropped=verdict)) + "\n")
        file.write('{"id": "torn\n[]\n{"id": "x", "dropped": 3}\n')
    (tmp_path / "kept.jsonl").write_text(json.dumps(row("k0", "What is it?")) + "\n")
    return tmp_path


def test_the_page_tells_the_funnel(directory: Path) -> None:
    page = write_curation_page(directory).read_text("utf-8")
    assert "59 of 100 rows kept, 59 %" in page
    widths = [float(width) for width in re.findall(r'class="fill c0" width="([\d.]+)"', page)]
    assert widths == [1000, 600, 590]
    cuts = [
        (float(x), float(w)) for x, w in re.findall(r'class="cut c\d" x="([\d.]+)" width="([\d.]+)"', page)
    ]
    # Four reasons and the rest of them fill the space between two steps; then the one that failed.
    assert cuts == [(600 + 80 * i, 80) for i in range(5)] + [(590, 10)]
    assert "changed <b>3</b>" in page
    assert "1 of them because no verdict could be had" not in page  # no example of it is in the file
    assert page.count('class="badge wrong"') == PER_STEP
    assert page.count(">r0</span>") == PER_REASON
    assert page.count("data:image/") == PER_STEP + 1
    assert "What is it?" in page


def test_rows_cannot_act_on_the_page(directory: Path) -> None:
    page = write_curation_page(directory).read_text("utf-8")
    assert "<script" not in page
    assert "onerror=y>" not in page.replace("onerror=y&gt;", "")
    assert "\u202e" not in page
    assert "default-src 'none'" in page


def test_only_a_finished_curation_has_a_page(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no finished curation"):
        write_curation_page(tmp_path)


def test_a_film_is_shown_by_its_first_frame(directory: Path, make_video: Callable[..., VideoRef]) -> None:
    film = make_video(directory / "film.mp4", 12).paths[0]
    videos = [{"type": "video", "video": film}, {"type": "video", "video": film, "start": 0.5}]
    turns = [{"role": "user", "content": [*videos, {"type": "text", "text": "What moves?"}]}]
    gone = [{"role": "user", "content": [{"type": "video", "video": "gone.mp4"}]}]
    rows = [row("film", "", messages=turns), row("gone", "", messages=gone)]
    (directory / "dropped.jsonl").write_text("")
    (directory / "kept.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    page = write_curation_page(directory).read_text("utf-8")
    assert page.count("data:image/") == len(videos)
    assert "gone.mp4" in page
