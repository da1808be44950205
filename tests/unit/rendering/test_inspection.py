"""What an inspection shows of a dataset, and how long its samples are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from posttrain.cli import main as cli
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset
from posttrain.data.formats import read_canonical
from posttrain.data.lengths import token_lengths
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.inspection import inspect_dataset
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.sample_tokens import SampleTokens
from posttrain.types import Family, VideoRef
from posttrain.viewer.dataset_page import histogram, write_dataset_page


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")


def row(number: int, **changes: Any) -> dict[str, Any]:
    asked = [{"type": "image", "image": "a.png"}, {"type": "text", "text": f"Was ist {number}? 你好 🦙"}]
    answer = "Ein <b>Lama</b> 🦙" * number
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"id": str(number), "messages": messages, "ground_truth": "Lama"} | changes


def pair(number: int) -> dict[str, Any]:
    return row(number, messages=row(1)["messages"][:1], chosen="Yes", rejected="No, never")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 96), "red").save(tmp_path / "a.png")
    rows = [row(number) for number in range(1, 40)] + [pair(40), row(41, tools=["no_such_tool"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows) + "{\n")
    return tmp_path / "rows.jsonl"


def test_views_are_the_renderers_tokens(path: Path, renderer: Renderer):
    dataset = Dataset(check_rows(path))
    found = inspect_dataset("rows", dataset, "tiny", renderer, shown=41, measured=41)
    assert [shown.sample.id for shown in found.shown] == [str(number) for number in range(1, 42)]
    for shown in found.shown[:39]:
        rendered = renderer.render(shown.sample.messages)
        (view,) = shown.views
        assert sum(token.count for token in view.tokens) == len(rendered.token_ids) == view.num_tokens
        learned = [token.supervised for token in view.tokens for _ in range(token.count)]
        assert learned == rendered.supervised
        assert "".join(token.text for token in view.tokens if token.supervised) == (
            shown.sample.messages[1].text + "<|im_end|>"
        )
        text = "".join(token.text for token in view.tokens)
        assert "Was ist" in text
        assert "你好 🦙" in text
        assert [token.text for token in view.tokens if token.is_media] == ["image 0"]
    chosen, rejected = found.shown[39].views
    assert (chosen.name, rejected.name) == ("chosen", "rejected")
    assert "".join(token.text for token in rejected.tokens if token.supervised) == "No, never<|im_end|>"
    assert found.lengths[39] == max(chosen.num_tokens, rejected.num_tokens)
    assert "no_such_tool" in found.shown[40].problem
    assert [name for name, _ in found.unrendered] == ["41"]
    assert len(found.broken) == 1


def test_a_part_is_spread_over_the_whole(path: Path, renderer: Renderer):
    found = inspect_dataset("rows", Dataset(check_rows(path)), "tiny", renderer, shown=4, measured=8)
    assert [shown.sample.id for shown in found.shown] == ["1", "11", "21", "31"]
    assert len(found.lengths) + len(found.unrendered) == 8


def test_lengths_are_counted_once(
    path: Path, renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    part = path.with_name("part.jsonl")
    part.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:40]))
    samples = list(read_canonical(part))
    counter = SampleTokens(renderer)
    lengths = token_lengths(samples, "print", counter, tmp_path / "cache")
    rendered = [renderer.render(sample.messages) for sample in samples[:39]]
    assert list(lengths[:39]) == [len(each.token_ids) for each in rendered]
    monkeypatch.setattr(SampleTokens, "__call__", None)
    assert token_lengths(samples, "print", SampleTokens(renderer), tmp_path / "cache") == lengths
    assert SampleTokens(renderer).identity == counter.identity


def test_the_page_shows_everything_and_runs_nothing(path: Path, renderer: Renderer):
    hostile = path.with_name("hostile.jsonl")
    script = "<script>alert(1)</script>"
    rows = [row(1), row(2, id=script, ground_truth=script, note=script), pair(3)]
    hostile.write_text("".join(json.dumps(each) + "\n" for each in rows) + "{\n")
    found = inspect_dataset(script, Dataset(check_rows(hostile)), "tiny", renderer, shown=3, measured=3)
    page = write_dataset_page(found, path.with_name("page.html")).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("data:image/") == 3  # one a sample
    assert re.search(r'<span class="t on[^"]*">E', page)
    assert "with loss" in page
    assert "hostile.jsonl:4: not valid JSON" in page
    assert "<b>rejected</b>" in page


def test_videos_are_shown_as_strips_of_timed_frames(tmp_path: Path, clips: list[VideoRef]):
    cases: list[tuple[Family, int]] = [("qwen3_vl", 4), ("qwen2_5_vl", 1)]
    for family, parts in cases:
        build_tiny(family, tmp_path / family)
        shown = [{"type": "video", "video": clips[0].paths[0]}, {"type": "text", "text": "What?"}]
        messages = [{"role": "user", "content": shown}, {"role": "assistant", "content": "A"}]
        (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "film", "messages": messages}) + "\n")
        renderer = Renderer.from_pretrained(tmp_path / family, family)
        found = inspect_dataset(
            "films", Dataset(check_rows(tmp_path / "rows.jsonl")), "tiny", renderer, shown=1, measured=1
        )
        (view,) = found.shown[0].views
        assert [token.text for token in view.tokens if token.is_media] == ["video 0"] * parts
        assert sum(token.count for token in view.tokens) == view.num_tokens == found.lengths[0]
        ((_, plan),) = found.shown[0].videos
        page = write_dataset_page(found, tmp_path / "page.html").read_text()
        assert page.count("data:image/") == len(plan.numbers) == 8
        assert all(f"video 0 at {time:.1f} s" in page for time in plan.timestamps)


@given(st.lists(st.integers(1, 40_000), max_size=60), st.integers(1, 30))
def test_a_histogram_counts_everything_once(lengths: list[int], bins: int):
    bars = histogram(lengths, bins)
    assert sum(count for _, _, count in bars) == len(lengths)
    assert len(bars) <= bins
    for first, last, count in bars:
        assert count == sum(first <= length <= last for length in lengths)


YAML = "name: mine\ndescription: Mine.\nlicence: MIT\nsource: {path: rows.jsonl}\nformat: trl\n"


def test_the_commands(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Q{number}", "chosen": "Yes", "rejected": "No"} for number in range(120)]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in rows) + '{"prompt": 1}\n'
    )
    (tmp_path / "mine.yaml").write_text(YAML + "filters: [{column: prompt, max_length: 3}]\n")
    assert cli.main(["data", "inspect", "mine.yaml", "--model", str(tiny_checkpoint)]) == 0
    assert "120 samples" not in (tmp_path / "mine.html").read_text()
    assert "100 samples, 1 rows broken, 20 filtered out" in (tmp_path / "mine.html").read_text()
    assert cli.main(["data", "inspect", "mine.yaml", "--output", "tiny.html"]) == 0
    assert "in tokens of a tiny Qwen3-VL" in (tmp_path / "tiny.html").read_text()
    assert cli.main(["data", "convert", "mine.yaml", "--output", "out.jsonl"]) == 0
    assert "100 samples, 1 broken and 20 filtered rows left out" in capsys.readouterr().out
    samples = list(read_canonical(tmp_path / "out.jsonl"))
    assert samples[99].chosen[0].text == "Yes"
    assert samples[0].id == "rows.jsonl:1"
    assert cli.main(["data", "convert", "none.yaml", "--output", "out.jsonl"]) == 2
