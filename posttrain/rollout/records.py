"""Trajectories as rows of `rollouts/*.jsonl`: what the viewer shows and a person can grep."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.files.durable import write_atomic
from posttrain.messages import message_to_json
from posttrain.run.directory import RunDir
from posttrain.types import Sample, Trajectory


def write_trajectories(
    run: RunDir,
    name: str,
    trajectories: Iterable[Trajectory],
    samples: Mapping[int, Sample],
    **origin: Any,
) -> None:
    """Write `rollouts/<name>.jsonl`, one row a trajectory.

    Args:
        run: The run's directory; images inside it are named relative to it.
        name: `<stage>/step-<n>` for training, `evaluation-<stage>-<task>` for evaluation.
        trajectories: Finished ones.
        samples: The prompt of each group.
        **origin: Keys that every row has: `stage`, `step`.

    Raises:
        DiskFull: If there is no space.
    """
    rows = [trajectory_row(trajectory, samples[trajectory.group], run.path) for trajectory in trajectories]
    text = "".join(json.dumps({**origin, **row}, ensure_ascii=False) + "\n" for row in rows)
    path = run.path / "rollouts" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def trajectory_row(trajectory: Trajectory, sample: Sample, root: Path) -> dict[str, Any]:
    """One trajectory without its tokens, images by path (relative to `root` where inside it)."""
    messages = [message_to_json(message) for message in (*trajectory.prompt, *trajectory.response)]
    for block in (block for message in messages for block in message["content"]):
        if block["type"] == "image" and Path(block["image"]).is_relative_to(root):
            block["image"] = str(Path(block["image"]).relative_to(root))
    return {
        "sample_id": trajectory.sample_id,
        "task": trajectory.task,
        "group": trajectory.group,
        "episode": trajectory.episode,
        "messages": messages,
        "num_prompt_messages": len(trajectory.prompt),
        "tool_calls": [dataclasses.asdict(call) for call in trajectory.tool_calls],
        "ground_truth": sample.ground_truth,
        "reward": dataclasses.asdict(trajectory.reward) if trajectory.reward else None,
        "advantage": trajectory.advantage,
        "stop_reason": trajectory.stop_reason,
        "num_tokens": len(trajectory.token_ids),
        "num_sampled": sum(trajectory.sampled),
        "version": max(trajectory.versions, default=-1),
    }
