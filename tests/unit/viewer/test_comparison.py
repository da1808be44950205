"""A run's comparison as page, picture and table, from what its cells have recorded."""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.evaluation.paired import compare
from posttrain.evaluation.statistics import wilson_interval
from posttrain.run.estimates import Estimate
from posttrain.run.rows import EVALUATION, METRICS, EpisodeRow, EvaluationRow, MetricsRow, write_rows
from posttrain.types import RewardResult, text_message
from posttrain.viewer import write_report
from posttrain.viewer.comparison import Comparison, comparisons
from posttrain.viewer.comparison_page import without_cells
from posttrain.viewer.records import read_contents
from posttrain.viewer.telling import signs
from tests.unit.viewer.pages import Page

STEPS, PROMPTS = 12, 40
#: Right answers of each objective at staleness 0 and 2; each seed has one more than the one before.
RIGHT = {("sapo", 0): 24, ("grpo", 0): 20, ("sapo", 2): 22, ("grpo", 2): 4}
START = 18


def cell(algorithm: str, staleness: int, seed: int) -> str:
    return f"rl-seed{seed}-max_staleness{staleness}-{algorithm}"


@pytest.fixture(scope="module")
def compared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "compared"
    run.mkdir()
    grid = [
        (name, staleness, seed) for seed in (0, 1, 2) for staleness in (0, 2) for name in ("sapo", "grpo")
    ]
    stages: list[dict[str, object]] = [{"stage": "sft", "start_from": "base"}]
    stages += [
        {
            "stage": "rl",
            "name": cell(name, staleness, seed),
            "start_from": "sft",
            "cell": {
                "comparison": "rl",
                "settings": {"seed": seed, "rollout.max_staleness": staleness, "algorithm.name": name},
            },
        }
        for name, staleness, seed in grid
    ]
    evaluation = {"tasks": [{"name": "with_tool", "rewards": [{"name": "answer_accuracy"}]}]}
    (run / "resolved.json").write_text(
        json.dumps({"name": "compared", "stages": stages, "evaluation": evaluation})
    )
    begun = grid[:-1]  # the last cell is still to come
    write_rows(run / METRICS, [row for each in begun for row in metrics(*each)])
    right = {cell(*each): RIGHT[each[:2]] + each[2] for each in begun} | {"sft": START}
    write_rows(run / EVALUATION, [evaluated(stage, count) for stage, count in right.items()])
    for stage, count in right.items():
        rows = [episode(number, number < count) for number in range(PROMPTS)]
        write_rows(run / "rollouts" / f"evaluation-{stage}-with_tool.jsonl", rows)
    return run


def metrics(name: str, staleness: int, seed: int) -> list[MetricsRow]:
    """Figures of a cell; stale GRPO collapses after its sixth step."""
    broken = (name, staleness) == ("grpo", 2)
    found: list[MetricsRow] = []
    for step in range(1, STEPS + 1):
        reward = 0.4 + 0.02 * step + 0.01 * seed - (0.06 * (step - 6) if broken and step > 6 else 0)
        figures = {
            "reward/mean": reward,
            "entropy": 0.9 if not broken else 0.9 * 0.7**step,
            "kl/old_new": 1e-4,
        }
        figures |= {"clip_fraction": 0.5 if broken else 0.1} if name == "grpo" else {}
        figures |= {"gate/neg_p05": 0.4 if step == 3 and seed == 1 else 0.9} if name == "sapo" else {}
        found.append(MetricsRow(cell(name, staleness, seed), step, float(step), {**figures}))
    return found


def evaluated(stage: str, right: int) -> EvaluationRow:
    low, high = wilson_interval(right, PROMPTS)
    return EvaluationRow(stage, "with_tool", 9, PROMPTS, right / PROMPTS, low, high)


def episode(number: int, right: bool) -> EpisodeRow:
    messages = (text_message("user", f"Which letter is {number}?"), text_message("assistant", "K"))
    reward = RewardResult(1.0, values={"answer_accuracy": float(right)})
    return EpisodeRow("rl", 0, f"p{number}", "with_tool", number, 0, messages, 1, (), (), "K", reward)


@pytest.fixture(scope="module")
def comparison(compared_run: Path) -> Comparison:
    (found,) = comparisons(read_contents(compared_run))
    return found


def test_cells_are_sorted_by_what_was_varied(comparison: Comparison):
    assert (comparison.name, comparison.origin, comparison.seeds) == (
        "rl",
        "sft",
        ["seed 0", "seed 1", "seed 2"],
    )
    assert comparison.labels == {
        "rollout.max_staleness": ["max staleness 0", "max staleness 2"],
        "algorithm.name": ["SAPO", "GRPO"],
    }
    assert comparison.colour == "algorithm.name"
    assert [(title, len(settings)) for title, settings in comparison.panels] == [
        ("max staleness 0", 2),
        ("max staleness 2", 2),
    ]
    assert [(len(each.cells), each.planned) for each in comparison.settings] == [
        (3, 3),
        (3, 3),
        (3, 3),
        (2, 3),
    ]


def test_accuracies_are_means_over_seeds_with_prompts_as_the_unit(comparison: Comparison):
    estimate = comparison.accuracy(comparison.settings[0], "with_tool")
    assert estimate is not None
    assert (estimate.value, estimate.n) == (pytest.approx((24 + 25 + 26) / 3 / PROMPTS), PROMPTS)
    shares = [1.0] * 24 + [2 / 3, 1 / 3] + [0.0] * 14
    spread = math.sqrt(sum((x - 0.625) ** 2 for x in shares)) / PROMPTS
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * spread, rel=0.08)
    gained = comparison.from_start(comparison.settings[0], "with_tool")
    assert gained is not None
    assert gained.difference == pytest.approx(0.625 - START / PROMPTS)


def test_pairs_differ_in_one_thing_and_seeds_are_told_apart(comparison: Comparison):
    pairs = [*comparison.differences("with_tool")]
    assert [(pair.key, pair.common, pair.first, pair.second) for pair in pairs] == [
        ("algorithm.name", "max staleness 0", "SAPO", "GRPO"),
        ("algorithm.name", "max staleness 2", "SAPO", "GRPO"),
        ("rollout.max_staleness", "SAPO", "max staleness 0", "max staleness 2"),
        ("rollout.max_staleness", "GRPO", "max staleness 0", "max staleness 2"),
    ]
    assert pairs[0].seeds == pytest.approx(dict.fromkeys(comparison.seeds, -0.1))
    assert pairs[1].seeds == pytest.approx(dict.fromkeys(comparison.seeds[:2], -0.45))  # those that both have
    one, other = (comparison.outcomes[cell(name, 2, 0), "with_tool"] for name in ("sapo", "grpo"))
    assert compare(one, other).difference == pytest.approx(-0.45)
    assert pairs[1].pair.p < 0.001


def test_signs_of_failure_are_those_of_the_cell_that_failed(comparison: Comparison):
    found = signs(comparison)
    told = {(sign.setting, sign.seed): [] for sign in found}
    for sign in found:
        told[sign.setting, sign.seed].append(sign.text)
    assert {setting for setting, _ in told} == {
        "max staleness 2, GRPO", "max staleness 0, SAPO", "max staleness 2, SAPO",
    }  # fmt: skip
    broken = told["max staleness 2, GRPO", "seed 0"]
    assert [text.split()[:3] for text in broken] == [
        ["the", "reward", "fell"],
        ["the", "entropy", "fell"],
        ["50%", "were", "clipped"],
        ["with_tool", "fell", "below"],
    ]
    assert told["max staleness 0, SAPO", "seed 1"] == [
        "at step 3 a twentieth of the tokens of bad episodes had a gate below 0.4"
    ]
    assert ("max staleness 0, SAPO", "seed 0") not in told


def test_page_picture_and_table_are_written_beside_the_report(compared_run: Path):
    report = page_of_compared(compared_run)
    assert report.all("a", href="./comparison-rl.html")
    assert "max staleness" not in report.visible.partition("Set-up")[0]  # cells have a page of their own
    page = Page(compared_run / "comparison-rl.html")
    assert page.all("script") == []
    assert (
        "4 settings of 12 steps, 3 seeds, 40 held-out prompts; 11 of 12 stages are measured so far"
        in page.visible
    )
    assert "All start from SFT, at 45.0 %" in page.visible
    root = ET.parse(compared_run / "comparison-rl.svg").getroot()
    assert root.tag.endswith("svg")
    lines = (compared_run / "comparison-rl.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert table[0][:4] == ["max staleness", "algorithm", "seeds", "with tool, 95 % interval"]
    assert [row[:3] for row in table[1:]] == [
        ["0", "SAPO", "3 of 3"], ["0", "GRPO", "3 of 3"], ["2", "SAPO", "3 of 3"], ["2", "GRPO", "2 of 3"],
    ]  # fmt: skip
    assert table[1][3].startswith("**62.5 %** (")
    assert (table[1][4], table[1][5]) == ("60.0 – 65.0 %", "+17.5")


def page_of_compared(run: Path) -> Page:
    return Page(write_report(run))


def test_a_run_without_comparisons_is_as_it_was(finished_run: Path):
    contents = read_contents(finished_run)
    assert comparisons(contents) == []
    assert without_cells(contents) is contents


def test_episodes_that_are_gone_leave_what_the_rows_tell(compared_run: Path, tmp_path: Path):
    run = tmp_path / "bare"
    run.mkdir()
    for name in ("resolved.json", METRICS, EVALUATION):
        (run / name).write_text((compared_run / name).read_text())
    (found,) = comparisons(read_contents(run))
    assert [*found.differences("with_tool")] == []
    assert found.accuracy(found.settings[0], "with_tool") is None
    write_report(run)
    assert "60.0 – 65.0 %" in Page(run / "comparison-rl.html").visible


def test_calls_are_told_by_need_where_they_were_measured(tmp_path: Path):
    """Of variants from other checkpoints, each against its own."""
    names = ("whole", "scratch")
    settings = [{"seed": 0, "variant": name} for name in names]
    stages: list[dict[str, object]] = [
        {"stage": "sft", "start_from": "base"},
        {"stage": "sft", "name": "old"},
    ]
    for name, origin, chosen in zip(names, ("sft", "old"), settings, strict=True):
        cells = {"comparison": "rl", "settings": chosen}
        stages.append({"stage": "rl", "name": f"rl-{name}", "start_from": origin, "cell": cells})
    rewards = [{"name": "answer_accuracy"}]
    evaluation = {"tasks": [{"name": task, "rewards": rewards} for task in ("with_tool", "without")]}
    recorded = {"name": "looks", "stages": stages, "evaluation": evaluation}
    (tmp_path / "resolved.json").write_text(json.dumps(recorded))
    figures = {
        "reward/mean": 0.5,
        "reward/answer_accuracy": 0.4,
        "reward/tool_calls": 0.3,
        "episode/tool_calls": 1.2,
    }
    write_rows(tmp_path / METRICS, [MetricsRow(f"rl-{name}", 1, 1.0, {**figures}) for name in names])
    by_need = {"tool_calls": 1.0, "tool_calls/looks 0": 0.25, "tool_calls/looks 2": 1.75}
    rows: list[EvaluationRow] = []
    for stage, right in (("sft", 10), ("old", 4), ("rl-whole", 20), ("rl-scratch", 20)):
        shares = {f"looks {need}": Estimate(0.5, 0.4, 0.6, 20) for need in (0, 2)}
        told = by_need | ({"tool_calls/rank_correlation": -0.5} if stage == "rl-whole" else {})
        rows.append(replace(evaluated(stage, right), metrics=told, difficulty=shares))
        rows.append(replace(evaluated(stage, 5), task="without"))
        path = tmp_path / "rollouts" / f"evaluation-{stage}-with_tool.jsonl"
        write_rows(path, [episode(number, number < right) for number in range(PROMPTS)])
    write_rows(tmp_path / EVALUATION, rows)
    (found,) = comparisons(read_contents(tmp_path))
    changes = [found.from_start(setting, "with_tool") for setting in found.settings]
    assert [round(40 * change.difference) for change in changes if change] == [10, 16]
    write_report(tmp_path)
    lines = (tmp_path / "comparison-rl.md").read_text().splitlines()
    head, _, whole, scratch = (line.strip("| ").split(" | ") for line in lines[-4:])
    whole, scratch = (dict(zip(head, cells, strict=True)) for cells in (whole, scratch))
    assert whole["calls at looks 0 / 2"] == "0.25 / 1.75"
    assert whole["accuracy at looks 0 / 2"] == "50 / 50 %"
    assert (whole["rank correlation, by seed"], scratch["rank correlation, by seed"]) == ("−0.50", "–")
    assert whole["without"].startswith("12.5 % (")
    page = (tmp_path / "comparison-rl.html").read_text()
    assert all(title in page for title in ("Tool calls", "answer accuracy"))
