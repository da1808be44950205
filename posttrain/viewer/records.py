"""Reading a run directory: whatever is there, as far as it is readable, within bounds.

A run may have just begun, may be running, may be huge. So each file may be absent, its last line may
be half written, and no more is kept in memory than a page can show.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_LINE_BYTES = 8 << 20
MAX_FILE_BYTES = 4 << 20
#: Steps kept of one stage's metrics; beyond it every second one goes.
MAX_STEPS = 4000
#: Trajectories read of one rollout file, and files read at each end of the run.
MAX_ROWS_PER_ROLLOUT = 128
STEP_FILES_PER_END = 2
MAX_EVALUATION_FILES = 12
#: What the name of a stage's folder may be.
FOLDER = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass
class Rollout:
    """One row of a rollout file and where in the run it stands.

    Attributes:
        phase: `first` or `last` steps of the training, or `evaluation`.
        row: The trajectory as the run recorded it.
    """

    phase: str
    row: dict[str, Any]


@dataclass
class RunRecord:
    """What a run directory holds.

    Attributes:
        directory: The run directory.
        config: The resolved settings, or {} where there are none.
        config_text: `config.yaml` as written.
        environment: `environment.json`, or {}.
        metrics: By stage, then by step: the numbers logged. Steps ascend.
        evaluation: Rows of `evaluation.jsonl`: of each (stage, task) that of the last step.
        on_the_way: The rows of earlier steps, in their order.
        funnels: By stage, the `funnel.json` of its curation.
        rollouts: Candidates for the trajectory cards.
        unreadable: How many lines were passed over, by file name.
    """

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    evaluation: list[dict[str, Any]] = field(default_factory=list)
    on_the_way: list[dict[str, Any]] = field(default_factory=list)
    funnels: dict[str, dict[str, Any]] = field(default_factory=dict)
    rollouts: list[Rollout] = field(default_factory=list)
    unreadable: dict[str, int] = field(default_factory=dict)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The config's stages; those without a readable form are left out."""
        stages = self.config.get("stages")
        return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []

    @property
    def origins(self) -> dict[str, str]:
        """By stage, the stage whose checkpoint it starts from, or `base`; a tiny_model has none."""
        befores = ["base", *map(stage_name, self.stages)]
        return {
            stage_name(stage): str(stage.get("start_from") or before)
            for before, stage in zip(befores, self.stages, strict=False)
            if stage.get("stage") != "tiny_model"
        }


def read_run(directory: Path) -> RunRecord:
    """Read what the page needs of a run directory; a missing or broken file counts as empty."""
    record = RunRecord(directory)
    record.config_text = _read_text(directory / "config.yaml")
    record.config = _mapping(record, "resolved.json") or _mapping(record, "config.yaml")
    record.environment = _mapping(record, "environment.json")
    for row in _rows(record, directory / "metrics.jsonl"):
        _add_metrics(record.metrics, row)
    record.metrics = {stage: dict(sorted(steps.items())) for stage, steps in record.metrics.items()}
    rows = {
        (str(row.get("stage")), str(row.get("task")), number(row.get("step")) or 0.0): row
        for row in _rows(record, directory / "evaluation.jsonl")
    }
    last = {(stage, task): step for stage, task, step in sorted(rows)}
    for (stage, task, step), row in rows.items():
        (record.evaluation if last[stage, task] == step else record.on_the_way).append(row)
    for stage in map(stage_name, record.stages):
        path = directory / stage / "curation" / "funnel.json"
        if FOLDER.fullmatch(stage) and path.is_file():
            record.funnels[stage] = _mapping(record, str(path.relative_to(directory)))
    for phase, path in _rollout_files(directory / "rollouts"):
        for index, row in enumerate(_rows(record, path)):
            if index == MAX_ROWS_PER_ROLLOUT:
                break
            record.rollouts.append(Rollout(phase, row))
    return record


def stage_name(settings: dict[str, Any]) -> str:
    """A stage's name in metrics and folders, from its settings: its kind unless it has its own."""
    return str(settings.get("name") or settings.get("stage") or "")


def number(value: Any) -> float | None:
    """A finite float, or None: null, NaN, infinity, booleans and text are no figures."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _add_metrics(metrics: dict[str, dict[int, dict[str, float]]], row: dict[str, Any]) -> None:
    """File a row under its stage and step; a step logged twice (two loggers) is merged."""
    step = number(row.get("step"))
    if step is None:
        return
    steps = metrics.setdefault(str(row.get("stage", "")), {})
    values = {key: figure for key, value in row.items() if (figure := number(value)) is not None}
    steps.setdefault(int(step), {}).update(values)
    if len(steps) > MAX_STEPS:
        for dropped in list(steps)[1:-1:2]:
            del steps[dropped]


def _rollout_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """(phase, file): the first and the last steps, and evaluations (`evaluation-*.jsonl`)."""
    files = sorted((p for p in directory.rglob("*.jsonl") if p.is_file()), key=_natural)
    evaluations = [path for path in files if path.name.startswith("evaluation")]
    steps = [path for path in files if path.name.startswith("step-")]
    first = steps[:STEP_FILES_PER_END]
    yield from (("first", path) for path in first)
    yield from (("last", path) for path in steps[len(first) :][-STEP_FILES_PER_END:])
    yield from (("evaluation", path) for path in evaluations[-MAX_EVALUATION_FILES:])


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key under which step-9 comes before step-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", str(path))]


def _rows(record: RunRecord, path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a JSONL file; other lines are counted and passed over."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            row = _parse(line)
            if isinstance(row, dict):
                yield row
            elif line.strip():
                record.unreadable[path.name] = record.unreadable.get(path.name, 0) + 1


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _read_text(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES).decode("utf-8", "replace")


def _mapping(record: RunRecord, name: str) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping; {} where it is absent, broken or something else."""
    text = _read_text(record.directory / name)
    if not text.strip():
        return {}
    try:
        value = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        value = None
    if not isinstance(value, dict):
        record.unreadable[name] = 1
        return {}
    return value
