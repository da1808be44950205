"""What a run's directory says that the run was: its stages, who started from whom, data, tasks and weights.

`resolved.json` is read key by key and not checked against today's settings: a directory that an older version
of posttrain wrote can still be viewed, and its checkpoints exported.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from posttrain.config.on_policy import TOLERANCES
from posttrain.files.durable import write_atomic
from posttrain.files.strict_json import Json, JsonObject
from posttrain.run.json_fields import integer, mapping, number, numbers, objects, text

#: Records the settings of a run, every default filled in.
RESOLVED = "resolved.json"
#: In a stage's folder: what it adapts, if not all of the model is trained.
ADAPTERS = "adapters.json"
#: In a stage's folder: on which nodes and GPUs its processes were, by what they did.
PLACES_FILE = "places.json"
#: The model that a run starts from, among the names of what a stage can start from.
BASE = "base"
#: Kinds of stages that make a new model, and so start from none.
MAKES_MODEL = ("tiny_model",)


@dataclass(frozen=True)
class TaskRecord:
    """A task that a stage learned.

    Attributes:
        name: The task's.
        data: Its dataset.
        ratio: Its share of every batch.
        tools: Names of the tools that were offered.
        weights: By the name of a reward, its weight in the total.
    """

    name: str
    data: str
    ratio: float
    tools: tuple[str, ...]
    weights: dict[str, float]


@dataclass(frozen=True)
class StageRecord:
    """A stage as it was configured.

    Attributes:
        name: Its name in metrics and folders.
        kind: What kind of stage it is: `sft`, `rl`, …
        origin: Name of the stage whose checkpoint it started from, or `base`; None where it makes a model.
        metric: The task or dataset that it was meant to get better at.
        steps: How many were planned; None where the data decide.
        logprob_tolerance: Largest gap between engine and learner that the run accepted.
        max_staleness: Most versions by which a token could be older than the weights that learned from it.
        mixture: Share of the samples by dataset.
        tasks: What was learned by playing.
        comparison: Name of the comparison that it is a cell of; "" if it is none.
        settings: Of a cell, what was varied, by key.
    """

    name: str
    kind: str
    origin: str | None
    metric: str | None
    steps: int | None
    logprob_tolerance: float | None
    max_staleness: int
    mixture: dict[str, float]
    tasks: tuple[TaskRecord, ...]
    comparison: str = ""
    settings: Mapping[str, Json] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """Share of what was learned by dataset, those of its tasks included."""
        return self.mixture | {task.data: task.ratio for task in self.tasks}


@dataclass(frozen=True)
class AdaptersRecord:
    """What a stage adapts.

    Attributes:
        layers: By part of the model, the number of layers by kind, `{"language model": {"q_proj": 28}}`.
        parameters: Number of parameters of the adapters.
    """

    layers: dict[str, dict[str, int]]
    parameters: int

    @property
    def text(self) -> str:
        """One line for people."""
        parts = [_kinds_text(part, kinds) for part, kinds in self.layers.items()]
        fixed = [part for part in ("language model", "vision tower", "merger") if part not in self.layers]
        rest = f"; {' and '.join(fixed)} stay as they are" if len(fixed) > 1 else ""
        return f"adapters of {self.parameters:,} parameters on {' and '.join(parts)}{rest}"

    def write(self, path: Path) -> None:
        """Write it as JSON, as a whole."""
        write_atomic(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "AdaptersRecord | None":
        """Read what `write` wrote; None if there is nothing that can be read."""
        try:
            record = mapping(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None
        layers = {
            part: {kind: int(count) for kind, count in numbers(kinds).items()}
            for part, kinds in mapping(record.get("layers")).items()
        }
        return cls(layers, integer(record.get("parameters")) or 0)


def _kinds_text(part: str, kinds: dict[str, int]) -> str:
    """Return `196 layers of 7 kinds in the language model (28 each of down_proj, …)`."""
    total, counts = sum(kinds.values()), set(kinds.values())
    if len(counts) == 1:
        listed = f"{counts.pop():,} each of {', '.join(kinds)}"
    else:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    some = f" of {len(kinds)} kinds" if len(kinds) > 1 else ""
    return f"{total:,} layer{'s' if total > 1 else ''}{some} in the {part} ({listed})"


@dataclass(frozen=True)
class RunRecord:
    """A run as it was configured.

    Attributes:
        name: Its name; "" where none is recorded.
        model: Name or path of the model that it started from; "" where a stage made it.
        family: The model's family; "" where none is recorded.
        seed: As text; "" where none is recorded.
        evaluated: Whether anything was to be measured.
        judges: By evaluation task, the reward whose full marks count as right.
        stages: In order.
    """

    name: str = ""
    model: str = ""
    family: str = ""
    seed: str = ""
    evaluated: bool = True
    judges: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[StageRecord, ...] = ()

    @property
    def origins(self) -> dict[str, str]:
        """By stage, the stage whose checkpoint it started from, or `base`; none for a new model."""
        return {stage.name: stage.origin for stage in self.stages if stage.origin is not None}

    def lineage(self, name: str) -> tuple[StageRecord, ...]:
        """Return the stages that made a stage's checkpoints, the first one first; none of a name unknown."""
        earlier, found = self.stages, []
        wanted: str | None = name
        while matching := [index for index, stage in enumerate(earlier) if stage.name == wanted]:
            found.append(earlier[matching[0]])
            wanted, earlier = found[-1].origin, earlier[: matching[0]]
        return tuple(reversed(found))

    @classmethod
    def from_json(cls, settings: JsonObject) -> "RunRecord":
        """Read settings of any version; what cannot be read is absent."""
        model = mapping(settings.get("model"))
        return cls(
            name=text(settings.get("name")),
            model=text(model.get("name_or_path")),
            family=text(model.get("family")),
            seed=text(settings.get("seed")),
            evaluated=settings.get("evaluation", True) is not None,
            judges=_judges(settings.get("evaluation")),
            stages=_stages(settings.get("stages"), text(model.get("dtype"))),
        )


def read_record(run: Path) -> RunRecord:
    """Read what a run's directory records of its settings.

    Raises:
        OSError: If there is no `resolved.json`.
        ValueError: If it cannot be read, or has no stages.
    """
    settings = json.loads((run / RESOLVED).read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or not isinstance(settings.get("stages"), list):
        raise ValueError(f"{run / RESOLVED} has no stages")
    return RunRecord.from_json(settings)


def _stages(stages: Json, dtype: str) -> tuple[StageRecord, ...]:
    read: list[StageRecord] = []
    before = BASE
    for settings in objects(stages):
        read.append(_stage(settings, before, dtype))
        before = read[-1].name
    return tuple(read)


def _stage(settings: JsonObject, before: str, dtype: str) -> StageRecord:
    kind, metric = text(settings.get("stage")), settings.get("metric")
    usual = TOLERANCES.get(dtype) if "logprob_tolerance" in settings else None
    return StageRecord(
        name=text(settings.get("name") or kind),
        kind=kind,
        origin=None if kind in MAKES_MODEL else text(settings.get("start_from") or before),
        metric=None if metric is None else text(metric),
        steps=integer(settings.get("max_steps") or settings.get("steps")),  # `steps` before layout 2
        logprob_tolerance=number(settings.get("logprob_tolerance")) or usual,
        max_staleness=integer(mapping(settings.get("rollout")).get("max_staleness")) or 0,
        mixture=numbers(mapping(settings.get("data")).get("mixture")),
        tasks=tuple(_task(task) for task in objects(settings.get("tasks"))),
        comparison=text(mapping(settings.get("cell")).get("comparison")),
        settings=mapping(mapping(settings.get("cell")).get("settings")),
    )


def _judges(evaluation: Json) -> dict[str, str]:
    found: dict[str, str] = {}
    for task in objects(mapping(evaluation).get("tasks")):
        rewards = objects(task.get("rewards"))
        name = text(task.get("name") or task.get("data"))
        found[name] = text(rewards[0].get("name")) if rewards else "answer_accuracy"
    return found


def _task(task: JsonObject) -> TaskRecord:
    ratio = number(task.get("ratio", 1.0))
    rewards = objects(task.get("rewards"))
    return TaskRecord(
        name=text(task.get("name") or task.get("data")),
        data=text(task.get("data")),
        ratio=0.0 if ratio is None else ratio,
        tools=tuple(text(tool.get("name")) for tool in objects(task.get("tools"))),
        weights={
            text(reward.get("name")).rpartition(":")[2]: number(reward.get("weight", 1.0)) or 0.0
            for reward in rewards
        },
    )


def record_places(stage_dir: Path, places: Mapping[str, Sequence[str]]) -> str:
    """Write where a stage's processes are, for its report; return it as a line.

    Args:
        stage_dir: The stage's folder.
        places: By what they do (`learners`), where each of them is.
    """
    write_atomic(stage_dir / PLACES_FILE, json.dumps(places, indent=2) + "\n")
    return places_line(places)


def places_line(places: Mapping[str, Sequence[str]]) -> str:
    """Tell in one line where processes are."""
    counted = {what: Counter(each) for what, each in places.items()}
    told = {
        what: ", ".join(f"{place} × {number}" if number > 1 else place for place, number in each.items())
        for what, each in counted.items()
    }
    return "; ".join(f"{what} on {where}" for what, where in told.items())
