import json
from pathlib import Path

import pytest

from posttrain.evaluation.evaluate import (
    EvaluationError,
    final_evaluations,
    read_evaluations,
    record_evaluation,
    summarize,
)
from posttrain.evaluation.pairs import pair_evaluations
from posttrain.evaluation.statistics import wilson_interval
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import HELD_OUT_PREFERRED
from posttrain.run.rows import EvaluationRow
from posttrain.types import RewardResult, ToolCall, Trajectory

PLACE = ("sft", "letters", 9)


def episode(value: float | None, group: int = 0, **extra: float) -> Trajectory:
    values: dict[str, float | None] = {"answer_accuracy": value, **extra}
    errors = {} if value is not None else {"answer_accuracy": "the judge is away"}
    total = value if value is None else value + sum(extra.values())
    reward = RewardResult(total, values=values, errors=errors)
    calls = [ToolCall("zoom", {}, ok=True, images=1), ToolCall("zoom", {}, ok=False, error="no")]
    return Trajectory("s", "t", group, 0, token_ids=[1, 2, 3], tool_calls=calls, reward=reward)


def test_accuracy_counts_full_marks_and_tool_calls_count_images():
    episodes = [episode(1.0, group, neatness=0.5) for group in range(3)] + [episode(0.5, 3, neatness=1.0)]
    row = summarize(episodes, "answer_accuracy", PLACE)
    assert row.place == PLACE
    assert (row.n, row.accuracy) == (4, 0.75)
    assert (row.low, row.high) == wilson_interval(3, 4)
    assert row.metrics["reward/neatness"] == 0.625
    assert row.metrics["tool_calls"] == 1


def test_a_sample_that_could_not_be_scored_is_not_a_wrong_answer():
    with pytest.raises(EvaluationError, match="the judge is away"):
        summarize([episode(1.0), episode(None)], "answer_accuracy", PLACE)


def test_a_repeated_evaluation_takes_the_place_of_the_first(tmp_path: Path):
    run = RunDir(tmp_path)
    for stage, task, step, accuracy in (
        ("sft", "a", 9, 0.1),
        ("sft", "b", 9, 0.2),
        ("sft", "a", 5, 0.05),
        ("sft", "a", 9, 0.3),
    ):
        record_evaluation(run, EvaluationRow(stage, task, step, accuracy=accuracy))
    assert [(row.task, row.step, row.accuracy) for row in read_evaluations(run)] == [
        ("b", 9, 0.2),
        ("a", 5, 0.05),
        ("a", 9, 0.3),
    ]
    assert [row.accuracy for row in final_evaluations(read_evaluations(run))] == [0.2, 0.3]


def test_held_out_pairs_are_rows_before_on_the_way_and_after(tmp_path: Path):
    def figures(stage: str, step: int, **values: float) -> str:
        means = {"eval_rewards/accuracies": 0.5, "eval_rewards/margins": 1.5} if values else {"loss": 0.1}
        return json.dumps({"stage": stage, "step": step} | values | means) + "\n"

    lines = [
        figures("dpo", step, **{HELD_OUT_PREFERRED: share})
        for step, share in ((0, 0.6), (5, 0.7), (10, 0.95))
    ]
    lines += [figures("dpo", 10), figures("other", 10, **{HELD_OUT_PREFERRED: 0.1})]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    rows = pair_evaluations(RunDir(tmp_path), "dpo", "held_out", 20, ("sft", 300))
    assert [(row.stage, row.step, row.accuracy) for row in rows] == [
        ("sft", 300, 0.6),
        ("dpo", 5, 0.7),
        ("dpo", 10, 0.95),
    ]
    assert (rows[2].low, rows[2].high) == wilson_interval(19, 20)
    assert {row.task for row in rows} == {"held_out"}
    assert rows[0].metrics == {"rewards/accuracies": 0.5, "rewards/margins": 1.5}
