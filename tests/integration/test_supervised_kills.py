"""SIGKILL at any point of a supervised stage, and resuming on the same trajectory, bit for bit."""

import itertools
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.run.directory import RunDir
from posttrain.run.process import STOP
from tests.integration.stage_process import StageProcesses
from tests.integration.supervised_stages import STAGES, begin, write_data

pytestmark = pytest.mark.slow

#: Kills of each stage at random moments, and within saves.
KILLS = {"tiny_model": (1, 0), "sft": (1, 1), "dpo": (1, 1), "sft on two ranks": (1, 0)}
SOAK_KILLS = {"tiny_model": (40, 10), "sft": (90, 15), "dpo": (80, 15), "sft on two ranks": (40, 10)}


@pytest.fixture(scope="module")
def processes() -> Iterator[StageProcesses]:
    processes = StageProcesses()
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@dataclass
class Whole:
    """A run that nothing disturbed."""

    run: RunDir
    stage: str
    seconds: float
    operations: int

    @property
    def checkpoint(self) -> Path:
        newest = self.run.newest_checkpoint(self.stage)
        assert newest is not None
        return newest


@pytest.fixture(scope="module")
def undisturbed(
    processes: StageProcesses, folder: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Whole]:
    found = {}
    for name, stage in STAGES.items():
        run = begin(folder, tmp_path_factory.mktemp("whole"), tiny_checkpoint, stage)
        told = processes.attempt(run, tiny_checkpoint, 0)
        assert not any(told["codes"]), told["error"]
        operations = int((run.path / "operations").read_text())
        found[name] = Whole(run, stage["stage"], told["seconds"], operations)
    return found


def notes(run: RunDir) -> dict[tuple[str, int, int], list[dict[str, Any]]]:
    """What was seen, by rank, attempt and step; a line that a kill cut off is no note."""
    found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for path in sorted(run.path.glob("seen-*.jsonl")):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("}\n"):
                note = json.loads(line)
                key = (path.name, note.pop("attempt"), note["step"])
                found.setdefault(key, []).append(note)
    return found


def differences(run: RunDir, whole: Whole) -> list[str]:
    """Where a run left the trajectory of the one that nothing disturbed."""
    expected = {(rank, step): seen for (rank, _, step), seen in notes(whole.run).items()}
    differing = [
        f"{rank}, attempt {attempt}, step {step}: {key}"
        for (rank, attempt, step), seen in notes(run).items()
        for mine, other in zip(seen, expected[rank, step], strict=False)
        for key in mine
        if mine[key] != other[key]
    ]
    ours, theirs = run.newest_checkpoint(whole.stage), whole.checkpoint
    if ours is None or ours.name != theirs.name:
        return [*differing, f"the last checkpoint is {ours}"]
    assert content(ours).keys() == content(theirs).keys()
    differing += [name for name, value in content(ours).items() if not same(value, content(theirs)[name])]
    return differing + ["metrics"] * (metrics(run) != metrics(whole.run))


def content(checkpoint: Path) -> dict[str, Any]:
    """Of every file of a checkpoint what it says; adapters name the run's folders in other files."""
    readers = {
        ".safetensors": load_file,
        ".json": lambda path: json.loads(path.read_text()),
        ".pt": torch.load,
        ".pth": lambda path: torch.load(path, weights_only=False),
    }
    paths = [
        path for path in checkpoint.rglob("*") if path.suffix in readers and path.name != "manifest.json"
    ]
    return {str(path.relative_to(checkpoint)): readers[path.suffix](path) for path in paths}


def same(mine: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(mine, torch.Tensor):
        return mine.dtype == other.dtype and torch.equal(mine, other)
    if isinstance(mine, dict):
        return mine.keys() == other.keys() and all(same(mine[key], other[key]) for key in mine)
    if isinstance(mine, list | tuple):
        return len(mine) == len(other) and all(map(same, mine, other))
    return repr(mine) == repr(other)


def metrics(run: RunDir) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if not key.startswith("time")} for row in rows]


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_ends_as_the_undisturbed_one(
    name: str,
    processes: StageProcesses,
    undisturbed: dict[str, Whole],
    folder: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    soak: bool,
) -> None:
    """A run is killed again and again until it gets through; then the next run is."""
    whole, chance = undisturbed[name], random.Random(name)
    at_random, in_saves = (SOAK_KILLS if soak else KILLS)[name]
    kills = ["kill_after"] * at_random + ["kill_at"] * in_saves
    chance.shuffle(kills)
    for number in itertools.count():
        if not kills:
            break
        run = begin(folder, tmp_path / str(number), tiny_checkpoint, STAGES[name])
        codes, attempt = [-9], 0
        while any(codes):
            kill = {}
            if kills and attempt < 5:
                moment = chance.random()
                within = (
                    moment * whole.seconds if kills[-1] == "kill_after" else int(moment * whole.operations)
                )
                kill = {kills[-1]: within}
            told = processes.attempt(run, tiny_checkpoint, attempt, **kill)
            codes = told["codes"]
            # A rank may find that the killed one is gone before its own kill arrives.
            assert set(codes) <= {-9, 0} or (-9 in codes and "gloo" in told["error"]), told["error"]
            if any(codes):
                kills.pop()
            attempt += 1
        assert differences(run, whole) == []
        shutil.rmtree(run.path)


@pytest.mark.parametrize("state", ["", "random state", "optimizer", "position", "figures"])
def test_without_a_part_of_the_state_the_trajectory_is_another(
    state: str,
    processes: StageProcesses,
    undisturbed: dict[str, Whole],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    """The negative control of the test above; `differences` has to find each."""
    whole, run = undisturbed["sft"], RunDir(tmp_path / "run")
    shutil.copytree(whole.run.path, run.path)
    shutil.rmtree(run.path / "sft" / whole.checkpoint.name)
    newest = run.newest_checkpoint("sft")
    assert newest is not None
    assert newest.name == "checkpoint-8"
    assert not any(processes.attempt(run, tiny_checkpoint, 1, without=state)["codes"])
    assert bool(differences(run, whole)) == bool(state)


@pytest.mark.parametrize("name", ["tiny_model", "sft on two ranks"])
def test_a_stage_that_is_asked_to_stop_loses_nothing(
    name: str,
    processes: StageProcesses,
    undisturbed: dict[str, Whole],
    folder: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    """As `saving_on_sigterm` asks; the step under way, which has no checkpoint otherwise, is saved."""
    whole = undisturbed[name]
    run = begin(folder, tmp_path, tiny_checkpoint, STAGES[name])
    told = processes.attempt(run, tiny_checkpoint, 0, stop_at=5)
    assert not any(told["codes"]), told["error"]
    newest = run.newest_checkpoint(whole.stage)
    assert newest is not None
    assert newest.name == "checkpoint-5"
    (run.path / STOP).unlink()
    assert not any(processes.attempt(run, tiny_checkpoint, 1)["codes"])
    assert differences(run, whole) == []
