"""Preference pairs out of a run's own rollouts: the best against the worst answer of a group.

It is a generator of datasets, so a pair is as easy to train on as anything else (`datasets_cfg/pairs.yaml`)::

    name: pairs
    description: Best against worst answers of the zoom run.
    licence: that of the run's data
    source:
      generator: posttrain.data.preferences:write
      params: {run: runs/zoom, stage: rl}
"""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from posttrain.data.formats import DataError, says_nothing, write_canonical
from posttrain.run.record import read_record
from posttrain.run.rows import ROLLOUTS, EpisodeRow, read_rows, with_image_paths
from posttrain.types import Message, Sample

#: Where a generated dataset has its rows.
ROWS = "data.jsonl"

#: An episode and its reward.
Scored = tuple[float, EpisodeRow]


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
    """Yield a pair of each group: the episode with the highest reward against the one with the lowest.

    Episodes count that ended with an answer, all of whose turns say something, and that have a reward: one
    that was cut at a limit would teach to end a turn in the middle of a sentence, and one whose reward failed
    was not judged. Of equal rewards the earlier episode is taken.

    Args:
        run: Directory of a run.
        stage: Name of the stage whose rollouts are used.
        min_margin: The rewards of a pair differ by more than this.

    Returns:
        Samples with `chosen` and `rejected`, in the order of the steps; their columns are the two rewards.

    Raises:
        DataError: If there are no rollouts, or a row cannot be read.
    """
    files = sorted((run / ROLLOUTS / stage).glob("step-*.jsonl"), key=_step)
    if not files:
        raise DataError(f"{run}: there are no rollouts of a stage {stage!r} (rollouts/{stage}/step-*.jsonl)")
    tools = _tools_by_task(run, stage)
    for path in files:
        rows = sorted(read_rows(path, EpisodeRow, _refuse), key=lambda row: (row.group, row.episode))
        for group, members in groupby(rows, key=lambda row: row.group):
            finished = [(row.total, row) for row in members if row.total is not None and _is_answered(row)]
            if not finished:
                continue
            best, worst = max(finished, key=itemgetter(0)), min(finished, key=itemgetter(0))
            if best[0] - worst[0] > min_margin:
                yield _pair(f"{stage}-{_step(path)}-{group}", best, worst, run, tools)


def _is_answered(row: EpisodeRow) -> bool:
    """Tell whether an episode ended with an answer, and every turn of it says something."""
    return row.stop_reason == "answer" and not any(map(says_nothing, row.response))


def _pair(name: str, best: Scored, worst: Scored, run: Path, tools: dict[str, tuple[str, ...]]) -> Sample:
    row = best[1]
    return Sample(
        id=name,
        messages=_placed(row.prompt, run),
        ground_truth=row.ground_truth,
        tools=tools.get(row.task, ()),
        columns={"chosen_reward": best[0], "rejected_reward": worst[0], "task": row.task},
        chosen=_placed(row.response, run),
        rejected=_placed(worst[1].response, run),
    )


def _placed(messages: tuple[Message, ...], run: Path) -> tuple[Message, ...]:
    """Return messages whose images are named by absolute path."""
    return tuple(with_image_paths(message, lambda path: str(run / path)) for message in messages)


def _refuse(path: Path, reason: str) -> None:
    raise DataError(f"{path}: a row cannot be read ({reason})")


def _tools_by_task(run: Path, stage: str) -> dict[str, tuple[str, ...]]:
    """Return the tools that each task announced, which a trajectory does not repeat."""
    try:
        stages = read_record(run).stages
    except (OSError, ValueError) as error:
        raise DataError(f"{run} is not a run's directory: {error!r}") from error
    return {task.name: task.tools for each in stages if each.name == stage for task in each.tasks}


def _step(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
