"""Whether the processes of a run fit their GPUs, and the cheapest ways to make them fit."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from posttrain.config.document import Key
from posttrain.config.learning import LearningStage
from posttrain.config.memory import (
    BYTES,
    CUDA_OVERHEAD,
    ENGINE_ASLEEP,
    Memory,
    ModelLoad,
    adapters,
    engine_least,
    given_logits,
    learner_memory,
    served_beside,
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
            rows.append((f"{stage.shared_name}: each of {stage.learners} learner processes", text))
        if stage.engines and stage.episodes is not None:
            each = stage.episodes.engine.tensor_parallel_size
            text = _engine_parts(model, stage.episodes, stage.episodes.scores)
            rank = stage.adapter_rank(config.use_gpu)
            if rank and isinstance(stage.episodes, OnPolicyRolloutConfig):
                versions = stage.episodes.adapter_versions
                size = versions * model.width * adapters(shape, rank)
                text += f"; {amount(size)} more for up to {versions} versions of the adapters"
            spans = f", on each of its {each} GPUs" if each > 1 else ""
            rows.append((f"{stage.shared_name}: each of {stage.engines} engines{spans}", text))
        rows += _reading_rows(model, stage)
    return [*dict.fromkeys(rows)]


def _reading_rows(model: ModelLoad, stage: StageConfig) -> list[tuple[str, str]]:
    """Estimate the memory of engines whose model reads what is played; nothing if its size is not known."""
    reading = stage.reading_engines
    teacher = None if reading is None else served_beside(model, reading.checkpoint)
    if reading is None or teacher is None:
        return []
    each = reading.rollout.engine.tensor_parallel_size
    spans = f", on each of its {each} GPUs" if each > 1 else ""
    name = f"{stage.shared_name}: each of {reading.rollout.actors} engines of the teacher{spans}"
    return [(name, _engine_parts(teacher, reading.rollout, given=True))]


def _engine_parts(model: ModelLoad, rollout: RolloutConfig, given: bool) -> str:
    """Tell what an engine takes, of each of its GPUs; given tokens are those that it scores or reads."""
    spans = rollout.engine.tensor_parallel_size
    least = amount(engine_least(model, rollout.max_length, spans))
    text = f"{least} at the least, {amount(model.width * model.shape.parameters / spans)} of them weights"
    logits = amount(given_logits(model.shape, rollout.max_length))
    return f"{text}; {logits} more for logits of given tokens" if given else text


def stage_misfits(
    model: ModelLoad, stage: StageConfig, card: float, gpus: int, shared: bool = False
) -> list[Misfit]:
    """Return why processes of a stage do not fit a GPU; the arguments are those of `learner_misfit`."""
    rollout = stage.episodes if stage.engines else None
    found = [learner_misfit(model, stage, card, gpus, shared and rollout is not None)]
    if rollout is not None:
        found.append(engine_misfit(model, rollout, card, ("rollout",), rollout.scores))
        if shared:
            found.append(_beside_learner(model, stage, rollout, card))
    reading = stage.reading_engines
    teacher = None if reading is None else served_beside(model, reading.checkpoint)
    if reading is not None and teacher is not None:
        found.append(engine_misfit(teacher, reading.rollout, card, reading.key, given=True))
    return [misfit for misfit in found if misfit is not None]


def learner_misfit(
    model: ModelLoad, stage: StageConfig, card: float, gpus: int, shared: bool = False
) -> Misfit | None:
    """Return why a learner of a stage does not fit a GPU; None if it does, or is of no known size.

    Args:
        model: The model that the stage trains.
        stage: The stage, as it is on GPUs.
        card: Bytes of a GPU.
        gpus: Number of GPUs; a way out takes no more.
        shared: Whether an engine sleeps on the learner's GPU meanwhile.
    """
    load, limit = stage.load(), card - CUDA_OVERHEAD - (ENGINE_ASLEEP if shared else 0)
    if load is None or not isinstance(stage, LearningStage):
        return None
    memory = learner_memory(model, load)
    if memory.peak <= limit:
        return None
    certain = memory.least > limit
    reason = f"a learner takes {_parts(memory, load.tokens)}; a GPU has {amount(limit)} for it"
    ways = _ways_out(model, stage, limit, gpus, shared)
    remedy = "; or ".join(f"{way.text} ({amount(way.peak)})" for way in ways)
    return Misfit((), reason, remedy or "take larger GPUs, or more of them", certain)


def engine_misfit(
    model: ModelLoad, rollout: RolloutConfig, card: float, key: Key, given: bool
) -> Misfit | None:
    """Return why an engine does not fit a GPU; None if it does.

    Args:
        model: The model that it serves.
        rollout: How it serves it.
        card: Bytes of a GPU.
        key: Path of the section of its settings.
        given: Whether it scores or reads given tokens.
    """
    share, spans = rollout.engine.gpu_memory_utilization, rollout.engine.tensor_parallel_size
    weights = model.width * model.shape.parameters / spans
    least = engine_least(model, rollout.max_length, spans)
    if least <= share * card:
        return _beside_engine(model, rollout, card, key) if given else None
    reason = (
        f"an engine takes {amount(least)}{' of each GPU' if spans > 1 else ''} for weights"
        f" ({amount(weights)}) and one episode of {rollout.max_length:,} tokens, and gpu_memory_utilization ="
        f" {share:g} of a GPU is {amount(share * card)}"
    )
    wanted = least / card
    higher = f"raise gpu_memory_utilization to {wanted + 0.01:.2f}" if wanted < 0.95 else "take larger GPUs"
    remedy = f"{higher}, or lower max_length, or raise tensor_parallel_size"
    return Misfit((*key, "engine"), reason, remedy, weights > share * card)


def _beside_engine(model: ModelLoad, rollout: RolloutConfig, card: float, key: Key) -> Misfit | None:
    """Return why logits of given tokens, which are none of vLLM's share, have no room beside it."""
    share, logits = rollout.engine.gpu_memory_utilization, given_logits(model.shape, rollout.max_length)
    if share * card + logits <= card:
        return None
    reason = (
        f"an engine takes gpu_memory_utilization = {share:g} of a GPU, and beside it {amount(logits)} for"
        f" logits of tokens that it scores or reads; {amount((1 - share) * card)} are left"
    )
    lower = f"lower it to {int(100 * (1 - logits / card)) / 100:g}"
    return Misfit((*key, "engine", "gpu_memory_utilization"), reason, lower, certain=False)


def _beside_learner(
    model: ModelLoad, stage: StageConfig, rollout: RolloutConfig, card: float
) -> Misfit | None:
    """Return why an engine that is awake has no room beside a learner that waits on the same GPU."""
    load = stage.load()
    if load is None:
        return None
    waiting = learner_memory(model, load).least + CUDA_OVERHEAD
    logits = given_logits(model.shape, rollout.max_length) if rollout.scores else 0.0
    share = rollout.engine.gpu_memory_utilization
    if share * card + logits + waiting <= card:
        return None
    reason = (
        f"engines and learners share their GPUs: an engine takes gpu_memory_utilization = {share:g} of one,"
        f" {amount(share * card)}, and {amount(logits)} for logits of tokens that it scores. A learner"
        f" that waits keeps {amount(waiting)}"
    )
    most = 1 - (logits + waiting) / card
    lower = f"lower it to {int(100 * most) / 100:g}" if most > 0.01 else "take larger GPUs, or more of them"
    return Misfit(("rollout", "engine", "gpu_memory_utilization"), reason, lower, certain=True)


def _parts(memory: Memory, tokens: int) -> str:
    """Tell what a process holds at the most, and of what it is made."""
    fixed = memory.certain["fixed weights"]
    states = amount(memory.least - fixed)
    kept = f", fixed weights {amount(fixed)}" if fixed else ""
    return (
        f"{amount(memory.peak)} at the most: weights, moments and gradients {states}{kept}, activations of"
        f" {tokens:,} tokens {amount(memory.activations)}"
    )


def _ways_out(model: ModelLoad, stage: LearningStage, limit: float, gpus: int, shared: bool) -> list[_Way]:
    """Find the cheapest changes after which a learner fits: single ones, then two and three together."""
    found: list[tuple[set[str], _Way]] = []
    sizes = (1, 2, 3)
    for changes in itertools.chain.from_iterable(itertools.combinations(_CHANGES, size) for size in sizes):
        keys = {key for key, _ in changes}
        fewer = [way.stage.batch_tokens for others, way in found if others < keys]
        if len(found) == WAYS or max(fewer, default=0) >= stage.batch_tokens:
            continue
        way = _first_that_fits(model, stage, limit, changes, lambda stage: stage.gpus(shared) <= gpus)
        # With more changes than need be, more of the tokens should be left.
        if way is not None and way.stage.batch_tokens > max(fewer, default=0):
            found.append((keys, way))
    return [way for _, way in found]


def _first_that_fits(
    model: ModelLoad,
    stage: LearningStage,
    limit: float,
    changes: tuple[tuple[str, tuple[object, ...]], ...],
    there_are_gpus: Callable[[LearningStage], bool],
) -> _Way | None:
    for values in itertools.product(*(values for _, values in changes)):
        way = _changed(model, stage, {key: value for (key, _), value in zip(changes, values, strict=True)})
        if way is not None and way.peak <= limit and there_are_gpus(way.stage):
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
