"""What each stage was for: branches are compared with what they branched from, and curves begin there."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.evaluation.statistics import wilson_interval
from posttrain.viewer import write_report
from posttrain.viewer.gains import Funnel, gains
from posttrain.viewer.panels import stage_charts
from posttrain.viewer.records import RunContents, read_contents
from posttrain.viewer.summary import Result, results

STAGES: list[dict[str, Any]] = [
    {"stage": "tiny_model"},
    {"stage": "sft", "metric": "with_tool"},
    {"stage": "sft", "name": "cold_start", "metric": "with_tool", "curation": "thinking"},
    {"stage": "dpo", "start_from": "sft", "metric": "pairs"},
    {"stage": "rl", "start_from": "sft", "metric": "with_tool"},
]


def row(stage: str, task: str, step: int, right: int) -> dict[str, Any]:
    low, high = wilson_interval(right, 400)
    return {
        "stage": stage,
        "task": task,
        "step": step,
        "n": 400,
        "accuracy": right / 400,
        "low": low,
        "high": high,
    }


ROWS = [
    row("tiny_model", "with_tool", 40, 0),
    row("sft", "with_tool", 100, 160),
    row("cold_start", "with_tool", 39, 240),
    row("cold_start", "with_tool", 70, 300),
    row("rl", "with_tool", 40, 180),
    row("sft", "pairs", 100, 250),
    row("dpo", "pairs", 30, 380),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    (directory / "cold_start" / "curation").mkdir(parents=True)
    (directory / "cold_start" / "curation" / "funnel.json").write_text('{"kept": 1258, "read": 1590}')
    (directory / "resolved.json").write_text(json.dumps({"name": "run", "stages": STAGES}))
    (directory / "evaluation.jsonl").write_text("".join(json.dumps(each) + "\n" for each in ROWS))
    metrics = [{"stage": "cold_start", "step": step, "time": step, "loss": 1.0} for step in (10, 70)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in metrics))
    return directory


def tasks_of(found: RunContents) -> list[list[Result]]:
    names = [stage.name for stage in found.record.stages]
    return results(found.evaluation, names, found.record.origins)


def test_a_branch_is_compared_with_what_it_branched_from(run: Path):
    found = read_contents(run)
    with_tool, pairs = tasks_of(found)
    changes = {each.stage: (each.change and round(each.change), each.apart) for each in with_tool}
    assert changes == {
        "tiny_model": (None, False),
        "sft": (40, True),
        "cold_start": (35, True),
        "rl": (5, False),
    }
    assert [each.stage for each in pairs] == ["sft", "dpo"]
    assert pairs[1].change == pytest.approx(32.5)


def test_each_stage_has_a_row_for_its_own_metric(run: Path):
    found = read_contents(run)
    rows = [
        (gain.stage, gain.origin, gain.result and gain.result.task) for gain in gains(found, tasks_of(found))
    ]
    assert rows == [
        ("sft", "tiny_model", "with_tool"),
        ("cold_start", "sft", "with_tool"),
        ("dpo", "sft", "pairs"),
        ("rl", "sft", "with_tool"),
    ]
    assert gains(found, tasks_of(found))[1].funnel == Funnel(1258, 1590, "cold_start/curation/curation.html")
    page = write_report(run).read_text()
    assert "With tool: 40 % after SFT → 45 % after RL" in page  # not against the stage beside it
    assert '<a href="cold_start/curation/curation.html">curated: 1,258 of 1,590 rows kept</a>' in page
    assert "<b>75.0 %</b>" in page


def test_what_was_measured_on_the_way_makes_a_curve_from_the_stage_before(run: Path):
    found = read_contents(run)
    [chart] = [chart for chart in stage_charts(found, "cold_start") if chart.title == "Held-out accuracy"]
    assert [probe.text for probe in chart.probes] == [
        "step 0\nwith tool: 0.4",
        "step 39\nwith tool: 0.6",
        "step 70\nwith tool: 0.75",
    ]
    assert not [chart for chart in stage_charts(found, "rl") if chart.title == "Held-out accuracy"]


def test_figures_of_single_tasks_have_charts_of_their_own(run: Path):
    tasks = [{"data": name, "ratio": 0.5, "rewards": [{"name": "answer_accuracy"}]} for name in ("a.b", "c")]
    stages = [each | {"tasks": tasks} if each["stage"] == "rl" else each for each in STAGES]
    (run / "resolved.json").write_text(json.dumps({"name": "run", "stages": stages}))
    figures = {"reward/mean": 0.5, "reward/a.b/mean": 0.25, "reward/c/mean": 0.75}
    figures |= {"advantage/zero_groups": 1, "advantage/a.b/zero_groups": 1, "advantage/c/zero_groups": 0}
    figures |= {"reward/my/rewards.py:kind": 0.1}  # a reward's name, with no task in it
    rows = [{"stage": "rl", "step": step, "time": step} | figures for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    shown = {chart.title: chart.probes[0].text for chart in stage_charts(read_contents(run), "rl")}
    assert shown["Reward by task: mean"] == "step 1\na.b: 0.25\nc: 0.75"
    assert shown["Signal that was lost by task: zero groups"] == "step 1\na.b: 1\nc: 0"
    assert shown["Reward"] == "step 1\nmean: 0.5\nrewards.py:kind: 0.1"


@pytest.mark.parametrize("start", ["dpo", "rl", "cold_start", "nowhere", 7])
def test_a_run_that_makes_no_sense_still_makes_a_page(run: Path, start: Any):
    stages = [stage | {"start_from": start, "metric": ["x"]} for stage in STAGES]
    (run / "resolved.json").write_text(
        json.dumps({"stages": [*stages, {"stage": "../../etc"}, {"stage": 3}]})
    )
    (run / "cold_start" / "curation" / "funnel.json").write_text('{"kept": "many", "read": null}')
    assert "What each stage was for" in write_report(run).read_text()
