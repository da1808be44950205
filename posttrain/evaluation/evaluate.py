"""Evaluation: a checkpoint's episodes on held-out samples, scored by the rewards' own code."""

import json
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from posttrain.config import EvalTask, RunConfig
from posttrain.data.sources import load_samples
from posttrain.evaluation.statistics import wilson_interval
from posttrain.files.durable import write_atomic
from posttrain.inference.engine import stable_seed
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob
from posttrain.rollout.play import RolloutPool
from posttrain.rollout.records import write_trajectories
from posttrain.run.directory import RunDir
from posttrain.types import Trajectory


class EvaluationError(RuntimeError):
    """An evaluation that would not mean what it says."""


def evaluate_task(
    pool: RolloutPool, config: RunConfig, task: EvalTask, run: RunDir, stage: str, step: int
) -> dict[str, Any]:
    """Run a task's first `num_samples` samples, one episode each, and record the result.

    Args:
        pool: Serving the checkpoint to evaluate.
        config: The run's.
        task: What to evaluate on.
        run: Where the row of `evaluation.jsonl` and the trajectories go.
        stage: Name of the stage that made the checkpoint.
        step: At which it was made.

    Returns:
        The row: `stage`, `task`, `step`, `n`, `accuracy` with its 95 % Wilson interval `low`, `high`, the
        mean of every reward and of tool calls in `metrics`, and `seconds`.

    Raises:
        EvaluationError: If a sample could not be scored; a failed score is never counted as a wrong answer.
    """
    begun = time.perf_counter()
    samples = load_samples(task.data, config.base_dir, use="episodes")
    count = min(task.num_samples, len(samples))
    groups = [
        GroupJob(i, task.name, samples[i], size=1, seed=stable_seed(config.seed, "evaluation", task.name, i))
        for i in range(count)
    ]
    rollout = config.evaluation_rollout
    trajectories = pool.rollout(
        groups, Limits(rollout.max_new_tokens, rollout.max_length, temperature=task.temperature)
    ).trajectories
    row = {"stage": stage, "task": task.name, "step": step, **summarize(trajectories, task.rewards[0].name)}
    row["seconds"] = round(time.perf_counter() - begun, 1)
    name = f"evaluation-{stage}-{task.name}"
    write_trajectories(run, name, trajectories, {g.group: g.sample for g in groups}, stage=stage, step=0)
    record_evaluation(run, row)
    return row


def summarize(trajectories: Sequence[Trajectory], main_reward: str) -> dict[str, Any]:
    """Accuracy of the main reward (full marks count), its interval, and the means of everything scored.

    Raises:
        EvaluationError: If a trajectory has no score.
    """
    values: dict[str, list[float]] = {"tool_calls": [], "tokens": []}
    correct = 0
    for trajectory in trajectories:
        verdict = trajectory.reward
        if verdict is None or verdict.total is None:
            reasons = verdict.errors if verdict else "it was not scored"
            raise EvaluationError(
                f"sample {trajectory.sample_id} has no score ({reasons}); see reward-server.log"
            )
        correct += verdict.values.get(main_reward) == 1.0
        values["tool_calls"].append(sum(call.images > 0 for call in trajectory.tool_calls))
        values["tokens"].append(len(trajectory.token_ids))
        for name, value in verdict.values.items():
            if value is not None:
                values.setdefault(f"reward/{name}", []).append(value)
    low, high = wilson_interval(correct, len(trajectories))
    means = {name: round(fmean(column), 4) for name, column in values.items() if column}
    accuracy = correct / max(1, len(trajectories))
    return {"n": len(trajectories), "accuracy": accuracy, "low": low, "high": high, "metrics": means}


def read_evaluations(run: RunDir) -> list[dict[str, Any]]:
    """The rows recorded so far."""
    path = run.path / "evaluation.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def final_evaluations(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each stage and task the row of the last step: without those measured on the way."""
    last: dict[tuple[str, str], int] = {}
    for row in rows:
        place = (row["stage"], row["task"])
        last[place] = max(last.get(place, 0), row["step"])
    return [row for row in rows if row["step"] == last[row["stage"], row["task"]]]


def record_evaluation(run: RunDir, row: dict[str, Any]) -> None:
    """Add a row; it takes the place of an earlier one of its stage, task and step."""
    place = (row["stage"], row["task"], row["step"])
    kept = [old for old in read_evaluations(run) if (old["stage"], old["task"], old["step"]) != place]
    write_atomic(run.path / "evaluation.jsonl", "".join(json.dumps(each) + "\n" for each in [*kept, row]))
