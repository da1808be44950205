"""The page as a browser would read it: parsed, never matched as text where structure counts."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.viewer import ReportError, write_report
from tests.unit.viewer.pages import copy_of, page_of, rollout_files, rows_of, write_rows

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    "{{ 7 * 7 }}{% raw %}\"'><svg onload=alert(1)>&lt;b&gt; \u202egnp.exe\x00 \ud800"
)


def only_row(run: Path, change) -> None:
    """Leave one rollout row in the run, changed."""
    row = rows_of(run / "rollouts" / "rl" / "step-1.jsonl")[0]
    for path in rollout_files(run):
        path.unlink()
    change(row)
    write_rows(run / "rollouts" / "rl" / "step-1.jsonl", [row])


def test_tells_the_verdict_first(page):
    assert "With tool: 33 % after SFT → 70 % after RL" in page.visible
    assert (
        "+37 points; the 95 % intervals do not overlap. Without tool: 15 % after SFT → 12 %" in page.visible
    )


def test_draws_every_result_with_its_interval(page):
    assert len(page.all("path", class_="whisker")) == 5
    widths = [float(str(found["width"])) for found in page.all("rect", class_="fill")][3:]
    assert widths == pytest.approx([27.5, 330, 700, 147.5, 115])


@pytest.mark.parametrize(
    "title",
    ["Reward", "Tool use", "Accuracy", "KL divergence", "Log-prob gap", "Gate", "Entropy", "Time", "Loss"],
)
def test_has_the_curves(page, title):
    assert title in page.texts["h3"]
    assert any(found.get("aria-label") == title for found in page.all("svg"))


def test_marks_the_limit_of_the_log_prob_gap(page):
    assert "limit 1e-4" in page.visible


def test_shows_a_dozen_trajectories_that_differ(page):
    cards = page.all("article")
    assert len(cards) == 12
    assert {(card["data-phase"], card["data-outcome"]) for card in cards} == {
        (phase, outcome) for phase in ("first", "last", "evaluation") for outcome in ("right", "wrong")
    }


def test_shows_the_same_prompt_answered_rightly_and_wrongly(page):
    samples = [text for text in page.texts["span"] if text.startswith("train-question-")]
    assert len(samples) == 12
    assert max(samples.count(sample) for sample in samples) == 2


def test_every_trajectory_has_scene_crop_box_and_rewards(page):
    assert len(page.all("img")) == 24
    assert len(page.all("rect", class_="edge")) == 12
    assert len(page.all("table", class_="rewards")) == 12
    assert page.visible.count("box overlap") == 12
    assert "image_zoom_in_tool" in "".join(page.texts["pre"])


def test_draws_the_box_where_the_model_asked(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    Image.new("RGB", (800, 400), "white").save(run / "images" / "wide.png")

    def change(row):
        row["messages"][0]["content"][0]["image"] = "images/wide.png"
        row["tool_calls"][0]["arguments"] = {"img_idx": 0, "bbox_2d": [100, 200, 300, 600], "label": "x"}

    only_row(run, change)
    page = page_of(run)
    assert page.all("svg", viewbox="0 0 1000 500.0")
    edge = page.all("rect", class_="edge")[0]
    assert [float(str(edge[key])) for key in ("x", "y", "width", "height")] == [100, 100, 200, 200]


def test_images_are_scaled_down(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    Image.effect_noise((2000, 1000), 60).save(run / "images" / "large.png")
    only_row(run, lambda row: row["messages"][0]["content"][0].update(image="images/large.png"))
    uri = str(page_of(run).all("img")[0]["src"])
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert image.size == (512, 256)


def test_hostile_text_everywhere_stays_text(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)

    def change(row):
        hostile = f"<tool_call>{HOSTILE}</tool_call><think>{HOSTILE}</think>{HOSTILE}"
        row["messages"][1]["content"] = hostile
        row["messages"][2]["content"][1]["text"] = row["messages"][3]["content"][0]["text"] = HOSTILE
        names = ("sample_id", "task", "ground_truth", "stop_reason", "group", "stage")
        row |= dict.fromkeys(names, HOSTILE)
        call = {"name": HOSTILE, "arguments": {HOSTILE: HOSTILE}, "ok": False, "error": HOSTILE, "images": 0}
        row["tool_calls"] = [call]
        row["reward"] = {
            "total": 0.5,
            "values": {HOSTILE: 0.5},
            "parts": {HOSTILE: {HOSTILE: 1.0}},
            "notes": {HOSTILE: HOSTILE},
            "errors": {HOSTILE: HOSTILE},
        }

    only_row(run, change)
    write_rows(run / "metrics.jsonl", [{"stage": HOSTILE, "step": 1, HOSTILE: 1.0, f"{HOSTILE}/x": 2.0}])
    result = {"stage": HOSTILE, "task": HOSTILE, "n": 3, "accuracy": 0.5, "metrics": {HOSTILE: 1}}
    write_rows(run / "evaluation.jsonl", [result])
    (run / "config.yaml").write_text(
        json.dumps({"name": HOSTILE, "seed": HOSTILE, "stages": [{"stage": HOSTILE}]})
    )
    (run / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    page = page_of(run)
    assert page.visible.count("alert(1)") > 20
    assert "49" not in page.texts["p"]
    assert not set("\u202e\x00") & set(page.source)
    assert "⟨202e⟩gnp.exe⟨0000⟩" in page.visible


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bbox_2d": None, "img_idx": 0},
        {"bbox_2d": "0,0,9,9", "img_idx": 0},
        {"bbox_2d": [1, 2, 3], "img_idx": 0},
        {"bbox_2d": [1, 2, "3", 4], "img_idx": 0},
        {"bbox_2d": [float("nan"), 0, 10, 10], "img_idx": 0},
        {"bbox_2d": [500, 500, 100, 100], "img_idx": 0},
        {"bbox_2d": [2000, 2000, 3000, 3000], "img_idx": 0},
        {"bbox_2d": [0, 0, 10, 10], "img_idx": 9},
        {"bbox_2d": [0, 0, 10, 10], "img_idx": -1},
        {"bbox_2d": [0, 0, 10, 10], "img_idx": 0.5},
        {"bbox_2d": [0, 0, 10, 10], "img_idx": "0"},
        {"bbox_2d": [0, 0, 10**400, 10], "img_idx": 10**400},
        ["bbox_2d"],
    ],
)
def test_boxes_that_are_none_are_not_drawn(finished_run, tmp_path, arguments):
    run = copy_of(finished_run, tmp_path)
    only_row(run, lambda row: row["tool_calls"][0].update(arguments=arguments))
    page = page_of(run)
    assert len(page.all("article")) == 1
    assert not page.all("rect", class_="edge")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_of_a_row_leaves_a_page(finished_run, tmp_path_factory, data):
    run = tmp_path_factory.mktemp("fuzz")
    (run / "rollouts" / "rl").mkdir(parents=True)
    row = rows_of(finished_run / "rollouts" / "rl" / "step-1.jsonl")[0]
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(JSON)
    row["reward"] = data.draw(st.just(row["reward"]) | st.fixed_dictionaries({"total": JSON, "values": JSON}))
    (run / "rollouts" / "rl" / "step-1.jsonl").write_text(json.dumps(row))
    (run / "metrics.jsonl").write_text(
        json.dumps({"stage": data.draw(JSON), "step": data.draw(JSON), "loss": 1})
    )
    (run / "evaluation.jsonl").write_text(
        json.dumps({"stage": "rl", "task": "a", "accuracy": data.draw(JSON)})
    )
    (run / "config.yaml").write_text(json.dumps({"name": data.draw(JSON), "stages": data.draw(JSON)}))
    page_of(run)


def test_files_that_are_no_images_are_never_embedded(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    secret = "machine-secret-4711"
    (tmp_path / "secret.txt").write_text(secret)
    (run / "images" / "link.png").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(run / "images" / "pipe.png")
    paths = [str(tmp_path / "secret.txt"), "../secret.txt", "images/link.png", "images/pipe.png", "/dev/zero"]
    paths += ["images", "", "images/absent.png", "\x00", "file:///etc/passwd", "https://example.org/a.png"]

    def change(row):
        row["messages"][0]["content"] = [{"type": "image", "image": path} for path in paths]

    only_row(run, change)
    page = page_of(run)
    assert not page.all("img")
    assert "cannot be used" in page.visible
    assert secret not in page.source
    assert base64.b64encode(secret.encode()).decode()[:16] not in page.source


def test_an_image_outside_the_run_is_shown(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    outside = tmp_path / "scene.png"
    Image.new("RGB", (40, 30), "red").save(outside)
    only_row(run, lambda row: row["messages"][0]["content"][0].update(image=str(outside)))
    assert page_of(run).all("img", width="40", height="30")


def test_a_prompt_with_a_video_names_it(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    film = {"type": "video", "video": "/data/<film>.mp4", "start": 2.0}
    only_row(
        run, lambda row: row["messages"][0].update(content=[film, {"type": "text", "text": "What moves?"}])
    )
    assert "[video /data/<film>.mp4]" in page_of(run).visible


def test_a_run_that_has_just_begun(tmp_path, finished_run):
    shutil.copy(finished_run / "config.yaml", tmp_path)
    page = page_of(tmp_path)
    assert "Nothing has been measured yet" in page.visible
    assert page.visible.count("not begun") == 3


@pytest.mark.parametrize(
    "missing", ["config.yaml", "environment.json", "metrics.jsonl", "evaluation.jsonl", "rollouts"]
)
def test_any_file_may_be_absent(finished_run, tmp_path, missing):
    run = copy_of(finished_run, tmp_path)
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "RL" in page_of(run).visible


def test_before_the_first_evaluation_the_reward_is_the_verdict(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    (run / "evaluation.jsonl").unlink()
    assert re.search(r"No evaluation yet; reward 0\.\d\d → 1\.\d\d at step 60 of RL", page_of(run).visible)


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"holds no run.*usually runs/<name>"):
        write_report(tmp_path)
    with pytest.raises(ReportError, match="holds no run"):
        write_report(tmp_path / "absent")


def test_damaged_lines_are_counted_and_passed_over(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"[" * 200_000 + b"\n\xff\xfe\n[1, 2]\n\n" + b'{"stage": "rl", "step": 61, "los')
    (run / "environment.json").write_text("{")
    page = page_of(run)
    assert "environment.json (1), metrics.jsonl (4)" in page.visible
    assert "60 / 60 steps" in page.visible


def test_a_huge_run_makes_a_page_of_ordinary_size(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    row = rows_of(run / "metrics.jsonl")[-1]
    write_rows(run / "metrics.jsonl", [row | {"step": step} for step in range(5_000)])
    episode = rows_of(run / "rollouts" / "rl" / "step-1.jsonl")[0]
    episode["messages"][1]["content"][0]["text"] = "word " * 20_000
    episode["messages"] += [episode["messages"][2]] * 500
    for step in range(60):
        write_rows(
            run / "rollouts" / "rl" / f"step-{step:06d}.jsonl", [episode | {"sample_id": str(step)}] * 2
        )
    page = page_of(run)
    assert len(page.all("article")) <= 12
    assert len(page.source) < 2_000_000
    assert "characters left out" in page.visible


def test_a_line_beyond_all_bounds_does_not_fill_the_memory(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    path = run / "rollouts" / "rl" / "step-1.jsonl"
    path.write_bytes(b'{"x": "' + b"y" * (20 << 20) + b'"}\n' + path.read_bytes())
    assert "step-1.jsonl (3)" in page_of(run).visible


def test_a_stage_that_was_evaluated_again_keeps_its_place(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    rows = rows_of(run / "evaluation.jsonl")
    write_rows(run / "evaluation.jsonl", [*rows, rows[1] | {"accuracy": 0.4}])
    assert "With tool: 40 % after SFT → 70 % after RL" in page_of(run).visible


def test_resolved_settings_count_more_than_those_given(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    (run / "resolved.json").write_text(json.dumps({"name": "resolved", "stages": []}))
    assert "resolved" in page_of(run).texts["h1"]


def test_a_report_replaces_the_one_before(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    assert write_report(run).read_text() == write_report(run).read_text()
    assert not list(run.glob(".*"))


def test_loads_no_torch():
    code = (
        "import sys, posttrain.viewer, posttrain.evaluation.table; print([m for m in ('torch', 'vllm', 'ray')"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code + " if m in sys.modules])"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
