"""Reading a run's directory for its report: whatever is there, as far as it is readable, within bounds.

A run may have just begun, may be running, may be huge. So each file may be absent, its last line may
be half written, and no more is kept in memory than a page can show.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import yaml

from posttrain.files.strict_json import JsonObject
from posttrain.run.json_fields import mapping
from posttrain.run.record import ADAPTERS, PLACES_FILE, RESOLVED, AdaptersRecord, RunRecord, places_line
from posttrain.run.rows import (
    EVALUATION,
    METRICS,
    ROLLOUTS,
    EpisodeRow,
    EvaluationRow,
    MetricsRow,
    numbered_rows,
    read_rows,
)

MAX_FILE_BYTES = 4 << 20
#: Steps kept of one stage's metrics; beyond it every second one goes.
MAX_STEPS = 4000
#: Trajectories read of one rollout file, and files read at each end of the run.
MAX_ROWS_PER_ROLLOUT = 128
STEP_FILES_PER_END = 2
MAX_EVALUATION_FILES = 12
#: What the name of a stage's folder may be.
FOLDER = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Candidate:
    """An episode that may become a card.

    Attributes:
        phase: `first` or `last` steps of the training, or `evaluation`.
        row: The episode as the run recorded it.
        file: Where it is recorded, relative to the run's directory.
        line: Number of its line there, from 1.
    """

    phase: str
    row: EpisodeRow
    file: str
    line: int


@dataclass
class RunContents:
    """What a run's directory holds.

    Attributes:
        path: The directory.
        record: What it says of the run's settings.
        config_text: `config.yaml` as written.
        environment: `environment.json`, or {}.
        metrics: By stage, then by step: the figures logged. Steps ascend.
        evaluation: Rows of `evaluation.jsonl`: of each (stage, task) that of the last step.
        on_the_way: The rows of earlier steps, in their order.
        funnels: By stage, the `funnel.json` of its curation.
        adapters: By stage, what it adapted.
        places: By stage, on which nodes and GPUs its processes were.
        candidates: For the trajectory cards.
        rollout_files: All files of episodes: the steps of training in their order, then the evaluations.
        step_files: By stage, then by step: where the step's episodes are recorded, relative to the directory.
        evaluation_files: The same of evaluations, by the file's name without `.jsonl`.
        unreadable: How many lines were passed over, by file name.
    """

    path: Path
    record: RunRecord = field(default_factory=RunRecord)
    config_text: str = ""
    environment: JsonObject = field(default_factory=dict)
    metrics: dict[str, dict[int, MetricsRow]] = field(default_factory=dict)
    evaluation: list[EvaluationRow] = field(default_factory=list)
    on_the_way: list[EvaluationRow] = field(default_factory=list)
    funnels: dict[str, JsonObject] = field(default_factory=dict)
    adapters: dict[str, AdaptersRecord] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    rollout_files: list[Path] = field(default_factory=list)
    step_files: dict[str, dict[int, str]] = field(default_factory=dict)
    evaluation_files: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, int] = field(default_factory=dict)

    def passed_over(self, path: Path, reason: str) -> None:
        """Count a line that cannot be read."""
        self.unreadable[path.name] = self.unreadable.get(path.name, 0) + 1


def read_contents(run: Path) -> RunContents:
    """Read what the report needs of a run's directory; a missing or broken file counts as empty."""
    found = RunContents(run)
    found.config_text = _read_text(run / "config.yaml")
    found.record = RunRecord.from_json(_mapping(found, RESOLVED) or _mapping(found, "config.yaml"))
    found.environment = _mapping(found, "environment.json")
    for row in read_rows(run / METRICS, MetricsRow, found.passed_over):
        _add_metrics(found.metrics, row)
    found.metrics = {stage: dict(sorted(steps.items())) for stage, steps in found.metrics.items()}
    rows = {row.place: row for row in read_rows(run / EVALUATION, EvaluationRow, found.passed_over)}
    last = {(stage, task): step for stage, task, step in sorted(rows)}
    for row in rows.values():
        final = last[row.stage, row.task] == row.step
        (found.evaluation if final else found.on_the_way).append(row)
    for stage in found.record.stages:
        path = run / stage.name / "curation" / "funnel.json"
        if not FOLDER.fullmatch(stage.name):
            continue
        if path.is_file():
            found.funnels[stage.name] = _mapping(found, str(path.relative_to(run)))
        if where := _mapping(found, f"{stage.name}/{PLACES_FILE}"):
            lists = {name: each for name, each in where.items() if isinstance(each, list)}
            found.places[stage.name] = places_line({name: [*map(str, each)] for name, each in lists.items()})
        if (adapters := AdaptersRecord.read(run / stage.name / ADAPTERS)) is not None:
            found.adapters[stage.name] = adapters
    _add_rollouts(found)
    return found


def _add_metrics(metrics: dict[str, dict[int, MetricsRow]], row: MetricsRow) -> None:
    """File a row under its stage and step; a step logged twice (two loggers) is merged."""
    steps = metrics.setdefault(row.stage, {})
    before = steps.get(row.step, row)
    measured = {name: value for name, value in row.figures.items() if value is not None}
    time = before.time if row.time is None else row.time
    steps[row.step] = replace(row, time=time, figures=before.figures | measured)
    if len(steps) > MAX_STEPS:
        for dropped in list(steps)[1:-1:2]:
            del steps[dropped]


def _add_rollouts(found: RunContents) -> None:
    """Note where all episodes are recorded, and read those that may become cards."""
    files = sorted((p for p in (found.path / ROLLOUTS).rglob("*.jsonl") if p.is_file()), key=_natural)
    evaluations = [path for path in files if path.name.startswith("evaluation")]
    steps = [path for path in files if path.name.startswith("step-")]
    found.rollout_files = [*steps, *evaluations]
    found.evaluation_files = {path.stem: _place(found, path) for path in evaluations}
    for path in steps:
        if (number := path.stem.removeprefix("step-")).isdecimal():
            found.step_files.setdefault(path.parent.name, {})[int(number)] = _place(found, path)
    for phase, path in _telling(steps, evaluations):
        episodes = islice(numbered_rows(path, EpisodeRow, found.passed_over), MAX_ROWS_PER_ROLLOUT)
        place = _place(found, path)
        found.candidates += (Candidate(phase, row, place, line) for line, row in episodes)


def _place(found: RunContents, path: Path) -> str:
    return path.relative_to(found.path).as_posix()


def _telling(steps: Sequence[Path], evaluations: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yield (phase, file) of those that cards are made from: the first and last steps, and evaluations."""
    first = steps[:STEP_FILES_PER_END]
    yield from (("first", path) for path in first)
    yield from (("last", path) for path in steps[len(first) :][-STEP_FILES_PER_END:])
    yield from (("evaluation", path) for path in evaluations[-MAX_EVALUATION_FILES:])


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a sort key under which step-9 comes before step-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", str(path))]


def _read_text(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES).decode("utf-8", "replace")


def _mapping(found: RunContents, name: str) -> JsonObject:
    """Read a YAML or JSON file that holds a mapping; {} where it is absent, broken or something else."""
    text = _read_text(found.path / name)
    if not text.strip():
        return {}
    try:
        value = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        value = None
    if not isinstance(value, dict):
        found.unreadable[name] = 1
    return mapping(value)
