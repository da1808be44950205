from pathlib import Path

import pytest

from posttrain.evaluation.evaluate import EvaluationError, read_evaluations, record_evaluation, summarize
from posttrain.run_dir import RunDir
from posttrain.types import RewardResult, ToolCall, Trajectory


def episode(value: float | None, **extra: float) -> Trajectory:
    values: dict[str, float | None] = {"answer_accuracy": value, **extra}
    errors = {} if value is not None else {"answer_accuracy": "the judge is away"}
    total = value if value is None else value + sum(extra.values())
    reward = RewardResult(total, values=values, errors=errors)
    calls = [ToolCall("zoom", {}, ok=True, images=1), ToolCall("zoom", {}, ok=False, error="no")]
    return Trajectory("s", "t", 0, 0, token_ids=[1, 2, 3], tool_calls=calls, reward=reward)


def test_accuracy_counts_full_marks_and_tool_calls_count_images():
    row = summarize([episode(1.0, neatness=0.5)] * 3 + [episode(0.5, neatness=1.0)], "answer_accuracy")
    assert row["n"] == 4
    assert row["accuracy"] == 0.75
    assert row["low"] < 0.75 < row["high"]
    assert row["metrics"]["reward/neatness"] == 0.625
    assert row["metrics"]["tool_calls"] == 1


def test_a_sample_that_could_not_be_scored_is_not_a_wrong_answer():
    with pytest.raises(EvaluationError, match="the judge is away"):
        summarize([episode(1.0), episode(None)], "answer_accuracy")


def test_a_repeated_evaluation_takes_the_place_of_the_first(tmp_path: Path):
    run = RunDir(tmp_path)
    for stage, task, accuracy in (("sft", "a", 0.1), ("sft", "b", 0.2), ("sft", "a", 0.3)):
        record_evaluation(run, {"stage": stage, "task": task, "accuracy": accuracy})
    assert [(row["task"], row["accuracy"]) for row in read_evaluations(run)] == [("b", 0.2), ("a", 0.3)]
