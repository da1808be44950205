"""Trajectories as rows of `rollouts/*.jsonl`: what the viewer shows and a person can grep."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from posttrain.run.directory import RunDir
from posttrain.run.rows import ROLLOUTS, EpisodeRow, with_image_paths, write_rows
from posttrain.types import Sample, Trajectory


def write_trajectories(
    run: RunDir,
    name: str,
    trajectories: Iterable[Trajectory],
    samples: Mapping[int, Sample],
    *,
    stage: str,
    step: int,
) -> Path:
    """Write `rollouts/<name>.jsonl`, one row a trajectory; return the file.

    Args:
        run: The run's directory; images inside it are named relative to it.
        name: `<stage>/step-<n>` for training, `evaluation-<stage>-<task>` for evaluation.
        trajectories: Finished ones.
        samples: The prompt of each group.
        stage: Name of the stage that they belong to.
        step: Of the stage; 0 in an evaluation.

    Raises:
        DiskFull: If there is no space.
    """
    rows = [
        episode_row(trajectory, samples[trajectory.group], run.path, stage, step)
        for trajectory in trajectories
    ]
    path = run.path / ROLLOUTS / f"{name}.jsonl"
    write_rows(path, rows)
    return path


def episode_row(trajectory: Trajectory, sample: Sample, root: Path, stage: str, step: int) -> EpisodeRow:
    """Return one trajectory without its tokens, images by path (relative to `root` where inside it)."""

    def place(path: str) -> str:
        return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path

    messages = (*trajectory.prompt, *trajectory.response)
    return EpisodeRow(
        stage=stage,
        step=step,
        sample_id=trajectory.sample_id,
        task=trajectory.task,
        group=trajectory.group,
        episode=trajectory.episode,
        messages=tuple(with_image_paths(message, place) for message in messages),
        num_prompt_messages=len(trajectory.prompt),
        tool_calls=tuple(trajectory.tool_calls),
        failures=tuple(trajectory.failures),
        ground_truth=sample.ground_truth,
        reward=trajectory.reward,
        advantage=trajectory.advantage,
        stop_reason=trajectory.stop_reason,
        num_tokens=len(trajectory.token_ids),
        num_sampled=sum(trajectory.sampled),
        version=max(trajectory.versions, default=-1),
    )
