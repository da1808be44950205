"""Evaluation: a checkpoint's episodes on held-out samples, scored by the rewards' own code."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from posttrain.config import EvalTask, RunConfig
from posttrain.data.renderable import RowCheck
from posttrain.data.sources import load_samples
from posttrain.evaluation.difficulty import bins_in_order, difficulty_bins
from posttrain.evaluation.shares import mean_share, pass_shares, shares_by_bin
from posttrain.evaluation.statistics import rank_correlation
from posttrain.inference.engine import stable_seed
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob
from posttrain.rollout.play import RolloutPool
from posttrain.rollout.records import write_trajectories
from posttrain.rollout.world import check_world
from posttrain.run.directory import RunDir
from posttrain.run.estimates import Estimate
from posttrain.run.metric_names import REWARD
from posttrain.run.rows import EVALUATION, EvaluationRow, read_rows, write_rows
from posttrain.types import Trajectory

logger = logging.getLogger(__name__)

#: Among a row's metrics: samples that were left out since their prompts leave no room for an answer.
LEFT_OUT = "left_out"
#: Among a row's metrics: episodes that tools or environments failed, which are left out as well.
FAILED = "failed"
#: Calls that returned an image: their mean, and with a bin of prompts after a stroke that of the bin.
TOOL_CALLS = "tool_calls"


class EvaluationError(RuntimeError):
    """An evaluation that would not mean what it says."""


def evaluate_task(
    pool: RolloutPool,
    config: RunConfig,
    task: EvalTask,
    run: RunDir,
    stage: str,
    step: int,
    check: RowCheck | None = None,
) -> EvaluationRow:
    """Run a task's first `num_samples` samples, `samples_per_prompt` episodes each, and record the result.

    A sample whose prompt leaves no room for an answer is left out and counted: it says nothing about the
    model, and is left out for every checkpoint alike.

    Args:
        pool: Serving the checkpoint to evaluate.
        config: The run's.
        task: What to evaluate on.
        run: Where the row of `evaluation.jsonl` and the trajectories go.
        stage: Name of the stage that made the checkpoint.
        step: At which it was made.
        check: Tells which prompts the checkpoint can be shown.

    Returns:
        The row, whose metrics are the means of every reward, of tool calls and of tokens.

    Raises:
        EvaluationError: If a sample could not be scored; a failed score is never counted as a wrong answer.
            Or if no prompt leaves room for an answer.
        WorldFailing: If tools or environments failed too many episodes.
    """
    begun = time.perf_counter()
    samples = load_samples(task.data, config.base_dir, use="episodes", check=check)
    count = min(task.num_samples, len(samples))
    groups = [
        GroupJob(
            *(i, task.name, samples[i], task.samples_per_prompt),
            seed=stable_seed(config.seed, "evaluation", task.name, i),
        )
        for i in range(count)
    ]
    rollout = config.evaluation_rollout
    limits = Limits.of_task(task, rollout, task.temperature)
    groups = with_room(groups, pool.prompt_tokens(groups), limits, task)
    trajectories = pool.rollout(groups, limits).trajectories
    check_world(trajectories, rollout.max_failed_share, f"evaluation of {task.name} after {stage}")
    played = [each for each in trajectories if not each.failed]
    levels = {group.group: group.sample.columns.get(task.difficulty_column) for group in groups}
    row = summarize(played, task.rewards[0].name, (stage, task.name, step))
    row = replace(row, difficulty=by_difficulty(played, task, levels))
    row = replace(row, metrics=row.metrics | calls_by_difficulty(played, task, levels))
    left_out = {LEFT_OUT: float(count - len(groups))} if len(groups) < count else {}
    if len(played) < len(trajectories):
        left_out[FAILED] = float(len(trajectories) - len(played))
    row = replace(row, metrics=row.metrics | left_out, seconds=round(time.perf_counter() - begun, 1))
    name = f"evaluation-{stage}-{task.name}"
    write_trajectories(run, name, trajectories, {g.group: g.sample for g in groups}, stage=stage, step=0)
    record_evaluation(run, row)
    return row


def with_room(
    groups: Sequence[GroupJob], tokens: Mapping[int, int], limits: Limits, task: EvalTask
) -> list[GroupJob]:
    """Return the groups whose prompts leave room for an answer; warn of the others.

    Args:
        groups: All of them.
        tokens: Of their prompts, by the group's index.
        limits: Of the episodes.
        task: What is evaluated.

    Raises:
        EvaluationError: If there is none.
    """
    fitting = [group for group in groups if limits.leave_room(tokens[group.group])]
    if too_long := [group for group in groups if not limits.leave_room(tokens[group.group])]:
        first = too_long[0]
        told = (
            f"task {task.name}: {len(too_long)} of {len(groups)} samples of dataset {task.data} have prompts"
            f" that leave no room for an answer in max_length = {limits.max_length}, such as row"
            f" {first.sample.id!r} with {tokens[first.group]} tokens; raise it, or lower model.max_pixels"
            " or video_max_tokens"
        )
        if not fitting:
            raise EvaluationError(told)
        logger.warning("%s; they are left out", told)
    return fitting


def summarize(
    trajectories: Sequence[Trajectory], main_reward: str, place: tuple[str, str, int]
) -> EvaluationRow:
    """Compute the accuracy of the main reward, its interval, and the means of everything that was scored.

    Args:
        trajectories: The finished episodes, as many of each group as of any other.
        main_reward: Name of the reward whose full marks count as right.
        place: Stage, task and step of the row.

    Raises:
        EvaluationError: If a trajectory has no score.
    """
    values: dict[str, list[float]] = {TOOL_CALLS: [], "tokens": []}
    for trajectory in trajectories:
        verdict = trajectory.reward
        if verdict is None or verdict.total is None:
            reasons = verdict.errors if verdict else "it was not scored"
            raise EvaluationError(
                f"sample {trajectory.sample_id} has no score ({reasons}); see reward-server.log"
            )
        values[TOOL_CALLS].append(sum(call.images > 0 for call in trajectory.tool_calls))
        values["tokens"].append(len(trajectory.token_ids))
        for name, value in verdict.values.items():
            if value is not None:
                values.setdefault(REWARD + name, []).append(value)
    right = list(right_by_group(trajectories, main_reward).values())
    answers = len(trajectories) // max(1, len(right))
    accuracy = mean_share(right, answers)
    return EvaluationRow(
        *(*place, accuracy.n, accuracy.value, accuracy.low, accuracy.high),
        metrics={name: round(fmean(column), 4) for name, column in values.items() if column},
        samples_per_prompt=max(1, answers),
        pass_at=pass_shares(right, answers),
    )


def right_by_group(trajectories: Sequence[Trajectory], main_reward: str) -> dict[int, int]:
    """Count the episodes of each group that got full marks of the main reward."""
    right: dict[int, int] = {}
    for trajectory in trajectories:
        full = trajectory.reward is not None and trajectory.reward.values.get(main_reward) == 1.0
        right[trajectory.group] = right.get(trajectory.group, 0) + full
    return right


def by_difficulty(
    trajectories: Sequence[Trajectory], task: EvalTask, levels: Mapping[int, object]
) -> dict[str, Estimate]:
    """Return the accuracy on each bin of prompts by difficulty; nothing where rows do not tell it.

    Args:
        trajectories: The finished episodes.
        task: What was evaluated.
        levels: What the row of each group has in the task's `difficulty_column`.
    """
    right = right_by_group(trajectories, task.rewards[0].name)
    told = [levels[group] for group in right]
    bins = difficulty_bins(told, task.difficulty_column)
    return shares_by_bin([*right.values()], task.samples_per_prompt, bins, told)


def calls_by_difficulty(
    trajectories: Sequence[Trajectory], task: EvalTask, levels: Mapping[int, object]
) -> dict[str, float]:
    """Return the mean calls that returned an image in each bin of prompts, and how calls follow difficulty.

    That is Spearman's rank correlation of an episode's calls with its prompt's number: where that is how many
    calls the prompt needs, it tells whether a model calls as often as it has to. There is none where all
    prompts have one number, or all episodes as many calls.

    Args:
        trajectories: The finished episodes.
        task: What was evaluated.
        levels: What the row of each group has in the task's `difficulty_column`.
    """
    if not task.tools:
        return {}
    told = [levels[each.group] for each in trajectories]
    bins = difficulty_bins(told, task.difficulty_column)
    calls = [sum(call.images > 0 for call in each.tool_calls) for each in trajectories]
    found: dict[str, list[int]] = {name: [] for name in bins_in_order(bins, told)}
    for name, count in zip(bins, calls, strict=True):
        if name is not None:
            found[name].append(count)
    if len(found) < 2:
        return {}
    means = {f"{TOOL_CALLS}/{name}": round(fmean(counts), 4) for name, counts in found.items()}
    pairs = [
        (count, level) for count, level in zip(calls, told, strict=True) if isinstance(level, int | float)
    ]
    correlation = rank_correlation([count for count, _ in pairs], [level for _, level in pairs])
    follows = {} if correlation is None else {f"{TOOL_CALLS}/rank_correlation": round(correlation, 4)}
    return means | follows


def read_evaluations(run: RunDir) -> list[EvaluationRow]:
    """Return the rows recorded so far."""
    return list(read_rows(run.path / EVALUATION, EvaluationRow))


def final_evaluations(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """Return the row of the last step of each stage and task: without those measured on the way."""
    last: dict[tuple[str, str], int] = {}
    for row in rows:
        last[row.stage, row.task] = max(last.get((row.stage, row.task), 0), row.step)
    return [row for row in rows if row.step == last[row.stage, row.task]]


def record_evaluation(run: RunDir, row: EvaluationRow) -> None:
    """Add a row; it takes the place of an earlier one of its stage, task and step."""
    kept = [old for old in read_evaluations(run) if old.place != row.place]
    write_rows(run.path / EVALUATION, [*kept, row])
