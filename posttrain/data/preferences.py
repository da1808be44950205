"""Preference pairs out of a run's own rollouts: the best against the worst answer of a group.

It is a generator of datasets, so a pair is as easy to train on as anything else (`datasets_cfg/pairs.yaml`)::

    name: pairs
    description: Best against worst answers of the zoom run.
    licence: that of the run's data
    source:
      generator: posttrain.data.preferences:write
      params: {run: runs/zoom, stage: rl}
"""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from posttrain.data.formats import DataError, write_canonical
from posttrain.messages import message_from_json
from posttrain.types import Message, Sample

#: Where a generated dataset has its rows.
ROWS = "data.jsonl"


def write(directory: Path, run: str, stage: str = "rl", min_margin: float = 0.0) -> None:
    """Write the pairs of a run's stage as a dataset; see the module's example.

    Args:
        directory: Where to write.
        run: Directory of a finished run.
        stage: Name of the stage whose rollouts are used.
        min_margin: The rewards of a pair differ by more than this.

    Raises:
        DataError: If there are no rollouts, a row cannot be read, or no group gives a pair.
    """
    pairs = list(preference_pairs(Path(run).expanduser().absolute(), stage, min_margin))
    if not pairs:
        raise DataError(
            f"{run}: no group of stage {stage!r} has two finished episodes whose rewards differ by more than"
            f" {min_margin:g}"
        )
    write_canonical(pairs, directory / ROWS)


def preference_pairs(run: Path, stage: str, min_margin: float = 0.0) -> Iterator[Sample]:
    """A pair of each group: the episode with the highest reward against the one with the lowest.

    Episodes count that ended with an answer and have a reward: one that was cut at a limit would teach to
    end a turn in the middle of a sentence, and one whose reward failed was not judged. Of equal rewards the
    earlier episode is taken.

    Args:
        run: Directory of a run.
        stage: Name of the stage whose rollouts are used.
        min_margin: The rewards of a pair differ by more than this.

    Returns:
        Samples with `chosen` and `rejected`, in the order of the steps; their columns are the two rewards.

    Raises:
        DataError: If there are no rollouts, or a row cannot be read.
    """
    files = sorted((run / "rollouts" / stage).glob("step-*.jsonl"), key=_step)
    if not files:
        raise DataError(f"{run}: there are no rollouts of a stage {stage!r} (rollouts/{stage}/step-*.jsonl)")
    tools = _tools_by_task(run, stage)
    for path in files:
        rows = sorted(_read(path), key=lambda row: (row["group"], row["episode"]))
        for group, members in groupby(rows, key=lambda row: row["group"]):
            finished = [row for row in members if row["stop_reason"] == "answer" and _reward(row) is not None]
            if not finished:
                continue
            best, worst = max(finished, key=_reward), min(finished, key=_reward)
            if _reward(best) - _reward(worst) > min_margin:
                yield _pair(f"{stage}-{_step(path)}-{group}", best, worst, run, tools)


def _pair(name: str, best: dict, worst: dict, run: Path, tools: dict[str, tuple[str, ...]]) -> Sample:
    prompt, chosen = _turns(best, run)
    _, rejected = _turns(worst, run)
    columns = {"chosen_reward": _reward(best), "rejected_reward": _reward(worst), "task": best["task"]}
    return Sample(
        id=name,
        messages=prompt,
        ground_truth=best["ground_truth"],
        tools=tools.get(best["task"], ()),
        columns=columns,
        chosen=chosen,
        rejected=rejected,
    )


def _turns(row: dict[str, Any], run: Path) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Prompt and response of an episode, images by absolute path."""
    for block in (block for message in row["messages"] for block in message["content"]):
        if block["type"] == "image":
            block["image"] = str(run / block["image"])
    messages = tuple(message_from_json(message) for message in row["messages"])
    return messages[: row["num_prompt_messages"]], messages[row["num_prompt_messages"] :]


def _reward(row: dict[str, Any]) -> Any:
    return row["reward"] and row["reward"]["total"]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise DataError(f"{path}: not JSON lines ({error})") from error


def _tools_by_task(run: Path, stage: str) -> dict[str, tuple[str, ...]]:
    """The tools that each task announced, which a trajectory does not repeat."""
    try:
        stages = json.loads((run / "resolved.json").read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{run} is not a run's directory: {error!r}") from error
    tasks = next((each.get("tasks", []) for each in stages if each["name"] == stage), [])
    return {task["name"]: tuple(tool["name"] for tool in task["tools"]) for task in tasks}


def _step(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
