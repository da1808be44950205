"""Whether the processes of a run fit their GPUs, and the cheapest ways to make them fit."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from posttrain.config.document import Key
from posttrain.config.learning import LearningStage
from posttrain.config.memory import (
    BYTES,
    CUDA_OVERHEAD,
    Memory,
    ModelLoad,
    adapters,
    engine_least,
    learner_memory,
)
from posttrain.config.model import ModelConfig
from posttrain.config.rollout import OnPolicyRolloutConfig, RolloutConfig
from posttrain.config.run import RunConfig
from posttrain.config.shapes import Shape, model_shape
from posttrain.config.stage import StageConfig

GIB = 2**30
#: Ways out that an error names.
WAYS = 3
#: Changes of one setting, the cheapest first: what costs nothing, what takes time, what takes GPUs, and what
#: learns something else. Of the values of one key the first that fits counts.
_CHANGES: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("sharding", ("fsdp2",)),
    ("per_device_batch_size", (2, 4, 8, 16, 32, 64)),  # divisors
    ("max_batch_tokens", (True,)),  # as short as an episode may be long
    ("gradient_checkpointing", (True,)),
    ("offload_activations", (True,)),
    ("optimizer", ("adamw_8bit",)),
    ("num_workers", (2, 4, 8)),  # factors
    ("max_length", (0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)),  # factors
    ("lora", ({"rank": 16},)),
)


@dataclass(frozen=True)
class Misfit:
    """A process that is larger than its GPU.

    Attributes:
        key: Path of the key that makes it so, from the stage.
        reason: What does not fit.
        remedy: The cheapest ways out.
        certain: Whether it fails whatever the data are.
    """

    key: Key
    reason: str
    remedy: str
    certain: bool


@dataclass(frozen=True)
class _Way:
    """Changed settings: how they are written, the stage with them, and what it then takes."""

    text: str
    stage: LearningStage
    peak: float


def amount(size: float) -> str:
    """Write a number of bytes."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 2 else f"{size / 2**20:.0f} MiB"


def model_load(model: ModelConfig, shape: Shape) -> ModelLoad:
    """Return a run's model as its stages hold it."""
    return ModelLoad(shape, BYTES[model.dtype], not model.freeze_vision_tower, not model.freeze_merger)


def memory_rows(config: RunConfig) -> list[tuple[str, str]]:
    """Estimate the memory of every process of a run.

    Returns:
        Rows of (process, memory), for a table; none if the model's size is not known.
    """
    shape = model_shape(config.model)
    if shape is None:
        return []
    model = model_load(config.model, shape)
    counts = f"{_count(shape.parameters)} parameters, {_count(model.trained)} of them trained"
    rows = [("model", f"{counts}, {config.model.dtype}")]
    for stage in config.stages:
        load = stage.load()
        if load is not None:
            text = _parts(learner_memory(model, load), load.tokens)
            rows.append((f"{stage.name}: each of {stage.learners} learner processes", text))
        if stage.engines and stage.episodes is not None:
            least = engine_least(model, stage.episodes.max_length)
            text = f"{amount(least)} at the least, {amount(model.width * shape.parameters)} of them weights"
            rank = stage.adapter_rank(config.use_gpu)
            if rank and isinstance(stage.episodes, OnPolicyRolloutConfig):
                versions = stage.episodes.adapter_versions
                size = versions * model.width * adapters(shape, rank)
                text += f"; {amount(size)} more for up to {versions} versions of the adapters"
            rows.append((f"{stage.name}: each of {stage.engines} engines", text))
    return rows


def stage_misfits(model: ModelLoad, stage: StageConfig, card: float, gpus: int) -> list[Misfit]:
    """Return why processes of a stage do not fit a GPU; the arguments are those of `learner_misfit`."""
    rollout = stage.episodes if stage.engines else None
    engine = None if rollout is None else engine_misfit(model, rollout, card, ("rollout",))
    return [misfit for misfit in (learner_misfit(model, stage, card, gpus), engine) if misfit is not None]


def learner_misfit(model: ModelLoad, stage: StageConfig, card: float, gpus: int) -> Misfit | None:
    """Return why a learner of a stage does not fit a GPU; None if it does, or is of no known size.

    Args:
        model: The model that the stage trains.
        stage: The stage, as it is on GPUs.
        card: Bytes of a GPU.
        gpus: Number of GPUs; a way out takes no more.
    """
    load, limit = stage.load(), card - CUDA_OVERHEAD
    if load is None or not isinstance(stage, LearningStage):
        return None
    memory = learner_memory(model, load)
    if memory.peak <= limit:
        return None
    certain = memory.least > limit
    reason = f"a learner takes {_parts(memory, load.tokens)}; a GPU has {amount(limit)} for it"
    ways = _ways_out(model, stage, limit, gpus)
    remedy = "; or ".join(f"{way.text} ({amount(way.peak)})" for way in ways)
    return Misfit((), reason, remedy or "take larger GPUs, or more of them", certain)


def engine_misfit(model: ModelLoad, rollout: RolloutConfig, card: float, key: Key) -> Misfit | None:
    """Return why an engine does not fit a GPU; None if it does.

    Args:
        model: The model that it serves.
        rollout: How it serves it.
        card: Bytes of a GPU.
        key: Path of the section of its settings.
    """
    share = rollout.engine.gpu_memory_utilization
    weights, least = model.width * model.shape.parameters, engine_least(model, rollout.max_length)
    if least <= share * card:
        return None
    reason = (
        f"an engine takes {amount(least)} for weights ({amount(weights)}) and one episode of"
        f" {rollout.max_length:,} tokens, and gpu_memory_utilization = {share:g} of a GPU is"
        f" {amount(share * card)}"
    )
    wanted = least / card
    higher = f"raise gpu_memory_utilization to {wanted + 0.01:.2f}" if wanted < 0.95 else "take larger GPUs"
    return Misfit((*key, "engine"), reason, f"{higher}, or lower max_length", weights > share * card)


def _parts(memory: Memory, tokens: int) -> str:
    """Tell what a process holds at the most, and of what it is made."""
    fixed = memory.certain["fixed weights"]
    states = amount(memory.least - fixed)
    kept = f", fixed weights {amount(fixed)}" if fixed else ""
    return (
        f"{amount(memory.peak)} at the most: weights, moments and gradients {states}{kept}, activations of"
        f" {tokens:,} tokens {amount(memory.activations)}"
    )


def _ways_out(model: ModelLoad, stage: LearningStage, limit: float, gpus: int) -> list[_Way]:
    """Find the cheapest changes after which a learner fits: single ones, then two and three together."""
    found: list[tuple[set[str], _Way]] = []
    sizes = (1, 2, 3)
    for changes in itertools.chain.from_iterable(itertools.combinations(_CHANGES, size) for size in sizes):
        keys = {key for key, _ in changes}
        fewer = [way.stage.batch_tokens for others, way in found if others < keys]
        if len(found) == WAYS or max(fewer, default=0) >= stage.batch_tokens:
            continue
        way = _first_that_fits(model, stage, limit, gpus, changes)
        # With more changes than need be, more of the tokens should be left.
        if way is not None and way.stage.batch_tokens > max(fewer, default=0):
            found.append((keys, way))
    return [way for _, way in found]


def _first_that_fits(
    model: ModelLoad,
    stage: LearningStage,
    limit: float,
    gpus: int,
    changes: tuple[tuple[str, tuple[object, ...]], ...],
) -> _Way | None:
    for values in itertools.product(*(values for _, values in changes)):
        way = _changed(model, stage, {key: value for (key, _), value in zip(changes, values, strict=True)})
        takes = 0 if way is None else way.stage.num_workers + way.stage.engines
        if way is not None and way.peak <= limit and takes <= gpus:
            return way
    return None


def _changed(model: ModelLoad, stage: LearningStage, changes: dict[str, object]) -> _Way | None:
    """Make some changes; None where the kind of stage does not take them, or they change nothing."""
    settings: dict[str, Any] = stage.model_dump(exclude_unset=True)
    texts: list[str] = []
    for key, text in _applied(stage, settings, changes):
        if not text:
            return None
        texts.append(f"{key}: {text}")
    try:
        changed = type(stage).model_validate(settings)
    except ValidationError:
        return None
    load = changed.load()
    assert load is not None
    return _Way(" and ".join(texts), changed, learner_memory(model, load).peak)


def _applied(
    stage: LearningStage, settings: dict[str, Any], changes: dict[str, object]
) -> Iterator[tuple[str, str]]:
    """Change settings in place; yield each key and its new value as text, "" where it cannot be changed."""
    for key, value in changes.items():
        if key == "per_device_batch_size" and isinstance(value, int):
            smaller, rest = divmod(stage.per_device_batch_size, value)
            if not smaller or rest:
                yield key, ""
                return
            settings[key] = smaller
            if "gradient_accumulation_steps" not in stage.unsupported:
                settings["gradient_accumulation_steps"] = stage.gradient_accumulation_steps * value
            yield key, f"{smaller}"
        elif key == "max_batch_tokens":
            longest = stage.episodes.max_length if stage.episodes is not None else stage.batch_tokens
            settings[key] = longest
            yield key, f"{longest:,}" if stage.batch_tokens > longest else ""
        elif key == "num_workers" and isinstance(value, int):
            settings[key] = stage.num_workers * value
            settings.pop("global_batch_size", None)
            yield key, f"{settings[key]}"
        elif key == "max_length" and isinstance(value, float):
            name = "rollout" if stage.episodes is not None else "data"
            before = getattr(getattr(stage, name), key)
            section = settings.setdefault(name, {})
            section[key] = int(before * value) // 1024 * 1024
            yield f"{name}.{key}", f"{section[key]:,}" if section[key] else ""
        elif getattr(stage, key) == value or (key == "lora" and stage.lora is not None):
            yield key, ""
        else:
            settings[key] = value
            yield key, str(value).lower().replace("'", "")


def _count(parameters: float) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e8 else f"{parameters / 1e6:.1f} M"
