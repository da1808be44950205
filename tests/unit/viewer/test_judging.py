"""Judges against rules: counted by step and task, added up and shown in the report."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from posttrain.config import RlTask
from posttrain.files.tally import Tally
from posttrain.first_party import PLUGINS
from posttrain.run.agreement import Confusion, read_figures
from posttrain.run.judging import LEDGER_FILE, spending_metrics, write_budget
from posttrain.run.rows import METRICS
from posttrain.training.on_policy.judge_agreement import agreement_metrics, judged_pairs
from posttrain.types import RewardResult, Trajectory
from posttrain.viewer.judging import agreements
from posttrain.viewer.records import read_contents
from posttrain.viewer.report import write_report

REWARDS = ["math", {"name": "judge", "params": {"model": "j"}}, "language_mixing", "truncation"]
TASKS = [RlTask.model_validate({"name": name, "data": "d", "rewards": REWARDS}) for name in ("sums", "tales")]
PAIRS = judged_pairs(PLUGINS, TASKS, Path())


def episodes(scores: Sequence[tuple[float | None, float | None]], task: str = "sums") -> list[Trajectory]:
    return [
        Trajectory("s", task, 0, index, reward=RewardResult(judge, {"judge": judge, "math": rule}))
        for index, (judge, rule) in enumerate(scores)
    ]


def test_penalties_are_no_rules_and_tasks_without_judges_no_pairs() -> None:
    assert {task: [(p.judge, p.rule) for p in pairs] for task, pairs in PAIRS.items()} == {
        "sums": [("judge", "math")],
        "tales": [("judge", "math")],
    }
    plain = RlTask.model_validate({"name": "p", "data": "d", "rewards": ["math"]})
    assert judged_pairs(PLUGINS, [plain], Path()) == {}


def test_kappa_of_a_textbook() -> None:
    # Cohen's own kind of table: 20 and 15 alike of 50, half of it by chance.
    found = Confusion(20, 5, 10, 15)
    assert found.agreement == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert Confusion(7, 0, 0, 0).kappa is None
    assert Confusion().agreement is None
    assert Confusion(1, 0, 0, 1).kappa == 1
    assert Confusion(0, 1, 1, 0).kappa == -1


def test_only_episodes_that_both_scored_are_compared() -> None:
    told = agreement_metrics(episodes([(0.9, 1.0), (0.2, 0.0), (0.5, 0.0), (None, 1.0), (1.0, None)]), PAIRS)
    figures = read_figures(told)
    assert set(figures) == {("sums", "judge", "math")}
    counted = figures["sums", "judge", "math"]
    assert {name: counted[name] for name in ("both", "judge_only", "rule_only", "neither")} == {
        "both": 1,
        "judge_only": 1,
        "rule_only": 0,
        "neither": 1,
    }
    expected = np.corrcoef([0.9, 0.2, 0.5], [1.0, 0.0, 0.0])[0, 1]
    assert counted["correlation"] == pytest.approx(expected)
    never_varies = agreement_metrics(episodes([(1.0, 1.0), (1.0, 0.0)]), PAIRS)
    assert not [name for name in never_varies if "correlation" in name]
    assert agreement_metrics(episodes([(None, 1.0)]), PAIRS) == {}


def test_the_report_adds_up_the_steps_and_tells_what_was_spent(tmp_path: Path, finished_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    chance, scores = random.Random(0), []
    with (run / METRICS).open("a", encoding="utf-8") as file:
        for step in range(1, 21):
            drawn = [(chance.random(), float(chance.random() < 0.5)) for _ in range(8)]
            scores += drawn
            row = {"stage": "rl", "step": step, **agreement_metrics(episodes(drawn, "markers_train"), MARKED)}
            file.write(json.dumps(row) + "\n")
    [found] = agreements(read_contents(run))
    assert (found.stage, found.task, found.judge, found.rule) == ("rl", "markers_train", "judge", "math")
    assert found.counts == Confusion.of((judge >= 0.5, rule >= 0.5) for judge, rule in scores)
    write_budget(run, None)
    Tally(run / LEDGER_FILE).change(
        lambda _: {"calls": 1234.0, "input_tokens": 9e5, "output_tokens": 8e4, "cost": 1.5, "dearest": 0.1}
    )
    assert spending_metrics(run)["judge/calls"] == 1234
    assert "judge/dearest" not in spending_metrics(run)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Judges and rules" in page
    assert f"<td>{found.counts.judge_only:,.0f}</td>" in page
    assert "1,234 calls, 900,000 + 80,000 tokens, cost 1.5" in page
    (run / LEDGER_FILE).write_text("{")
    assert spending_metrics(run) == {}


MARKED = {"markers_train": PAIRS["sums"]}
