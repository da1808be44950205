"""What the processes of a rollout hold in the host's memory, computed from the settings alone.

    pixels of a sequence = image tokens × bytes a token       3 bytes a pixel, whatever the model's type
    engine               = pixels of the sequences that are open, within their room, + patches of one step
                           + tokens of these sequences + the process itself, and those of its ranks
    learner              = pixels within their room + the whole batch's tokens + the process itself
    driver               = tokens of all steps in flight + the process itself
    object store         = a batch on its way to the learners (groups from the engines are there before it)

On a CPU an engine also holds weights, keys and values, and the logits of tokens that it scores or reads, a
learner what `memory.py` says. The bytes of a token are those of Python's lists, measured;
`scripts/bench_host_memory.py` compares the sums with processes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.config.memory import ModelLoad, given_logits, learner_memory, served_beside
from posttrain.config.model import ModelConfig, infer_family
from posttrain.config.rollout import EngineConfig, RolloutConfig
from posttrain.config.run import RunConfig
from posttrain.config.shapes import Shape, Tower
from posttrain.config.stage import ReadingEngines, StageConfig

GIB = 2**30
#: Part of the machine's memory that may hold pixels, of all its engines together and of all its learners.
SHARE_OF_PIXELS = 1 / 8
#: Sequences that an engine has open, for each that it samples at once: others are with their tools.
OPEN_PER_PLACE = 2
#: Bytes of a token in a trajectory: its id, log-prob, version and marks, as Python's lists hold them and as
#: they are sent.
TOKEN, TOKEN_SENT = 110, 20
#: Bytes of an episode's texts, tool calls and rewards.
EPISODE = 32 * 1024
#: What a process takes before it has done anything: Python, torch and the libraries that its work needs; and
#: what one that uses a GPU takes, with CUDA's (this one is not measured).
PROCESS, CUDA_PROCESS = 1.0 * GIB, 4.0 * GIB
#: Name of the memory that processes share for what they send each other.
OBJECT_STORE = "object store"
#: What decoding an image takes, times its pixels resized, until these are made: resizing computes in float32.
DECODING = 12
#: Threads that decode in a process, at the most.
DECODERS = 8
#: Least tokens of an engine's step; the images of one step become patches together.
STEP_TOKENS = 8192
#: Bytes of keys and values of an engine on a CPU, unless its settings say how many.
CPU_CACHE = 1.0 * GIB


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        memory: Bytes that a run may take there; None where that is not known.
        shared: Free bytes of its shared memory; None likewise.
    """

    memory: float | None = None
    shared: float | None = None


@dataclass(frozen=True)
class HostProcess:
    """Processes of one kind on a machine.

    Attributes:
        name: What they are.
        count: How many there are.
        parts: The bytes of each, by what they are for.
    """

    name: str
    count: int
    parts: Mapping[str, float]

    @property
    def bytes(self) -> float:
        """Most bytes of one of them."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class RolloutLoad:
    """What a stage's engines have to hold at the same time.

    Attributes:
        sequences: Sequences that one engine has open.
        episodes: Episodes of a step.
        steps: Steps in flight.
        max_length: Most tokens of an episode.
        image_tokens: Those of its tokens that may be images.
        token_bytes: Bytes of an image token's pixels; 0 of a text model.
    """

    sequences: int
    episodes: int
    steps: int
    max_length: int
    image_tokens: int
    token_bytes: int

    @property
    def sequence_pixels(self) -> float:
        """Bytes of the pixels of one sequence."""
        return float(self.image_tokens * self.token_bytes)

    @property
    def pixels(self) -> float:
        """Bytes of the pixels that one engine would hold with room for all."""
        return self.sequences * self.sequence_pixels


def image_room(engine: EngineConfig, memory: float, engines: int) -> float:
    """Return the bytes of pixels that an engine may hold.

    Args:
        engine: Its settings.
        memory: Bytes of its machine.
        engines: Number of engines on this machine.
    """
    if engine.image_memory_gb is not None:
        return engine.image_memory_gb * GIB
    return SHARE_OF_PIXELS * memory / engines


def tower_of(model: ModelConfig, shape: Shape | None) -> Tower | None:
    """Return the vision tower of a run's model, of the widths that are known; None of a text model."""
    if shape is not None:
        return shape.tower
    family = model.family or (model.name_or_path and infer_family(model.name_or_path))
    if family == "text":
        return None
    return Tower(0, 0, 0, patch=3 * 2 * (14 if family in ("qwen2_vl", "qwen2_5_vl") else 16) ** 2)


def rollout_load(config: RunConfig, stage: StageConfig, tower: Tower | None) -> RolloutLoad | None:
    """Return what the engines of a stage have to hold; None without engines or episodes."""
    rollout, (episodes, steps) = stage.episodes, stage.episodes_in_flight
    if rollout is None or not stage.engines:
        return None
    open_here = OPEN_PER_PLACE * rollout.engine.max_num_seqs
    sequences = min(open_here, math.ceil(episodes * steps / stage.engines)) if episodes else open_here
    token_bytes = 0 if tower is None else tower.patch // 2 * tower.patches
    image_tokens = 0 if tower is None else _image_tokens(config.model, stage, rollout, tower)
    return RolloutLoad(sequences, episodes, steps, rollout.max_length, image_tokens, token_bytes)


def _image_tokens(model: ModelConfig, stage: StageConfig, rollout: RolloutConfig, tower: Tower) -> int:
    """Return how many tokens of an episode may be images: one in the prompt and one in every reply."""
    if model.max_pixels is None:
        return rollout.max_length
    area = tower.patch // 6 * tower.patches  # pixels of a token: a patch has two frames of three channels
    images = max((use.task.max_turns for use in stage.tasks_played()), default=1)
    return min(rollout.max_length, images * math.ceil(model.max_pixels / area))


def host_processes(
    config: RunConfig, stage: StageConfig, model: ModelLoad | None, host: Host
) -> list[HostProcess]:
    """Estimate what the processes of a stage with a rollout hold; none of a stage without.

    Args:
        config: The run, as it is on its devices.
        stage: The stage.
        model: The run's model; None if its widths are not known.
        host: The machine that everything runs on.
    """
    tower = tower_of(config.model, None if model is None else model.shape)
    load = rollout_load(config, stage, tower)
    if load is None:
        return []
    found = [
        HostProcess("the run itself", 1, _driver(load)),
        HostProcess("engine", stage.engines, _engine(config, stage, model, load, host)),
    ]
    reading = stage.reading_engines
    if reading is not None:
        teacher = None if model is None else served_beside(model, reading.checkpoint)
        parts = _reading_engine(config, stage, reading, teacher, load)
        found.append(HostProcess("engine of the teacher", reading.rollout.actors, parts))
    if load.episodes:
        sent = load.episodes * (load.max_length * TOKEN_SENT + EPISODE)
        found.append(HostProcess("learner", stage.learners, _learner(config, stage, model, load, host)))
        found.append(HostProcess(OBJECT_STORE, 1, {"a batch on its way": float(sent)}))
        if model is not None:  # the first learner gathers it before it writes it
            whole = float(model.width * model.shape.parameters)
            found.append(HostProcess("checkpoint that is written", 1, {"weights": whole}))
    return found


def _process(config: RunConfig) -> float:
    return CUDA_PROCESS if config.use_gpu else PROCESS


def _driver(load: RolloutLoad) -> dict[str, float]:
    """Return what the run itself holds: trajectories of steps in flight, and of the one that is learned."""
    steps = load.steps + 1
    tokens = float(steps * load.episodes * (load.max_length * TOKEN + EPISODE))
    return {f"tokens of {steps} steps": tokens, "process": PROCESS}


def _engine(
    config: RunConfig, stage: StageConfig, model: ModelLoad | None, load: RolloutLoad, host: Host
) -> dict[str, float]:
    rollout = stage.episodes
    assert rollout is not None
    parts: dict[str, float] = {}
    if load.token_bytes:
        room = math.inf if host.memory is None else image_room(rollout.engine, host.memory, stage.engines)
        longest = float(load.max_length * load.token_bytes)  # it is granted, however small the room is
        parts["pixels"] = max(longest, min(load.pixels, room))
        parts["decoding"] = DECODERS * DECODING * load.sequence_pixels / max(1, _images(stage))
    parts["tokens"] = float(load.sequences * (load.max_length * TOKEN + EPISODE))
    return parts | _ranks(config, rollout.engine, model, load, given=rollout.scores)


def _reading_engine(
    config: RunConfig, stage: StageConfig, reading: ReadingEngines, model: ModelLoad | None, load: RolloutLoad
) -> dict[str, float]:
    """Return what an engine holds that reads a group at a time; its images are then all there."""
    parts: dict[str, float] = {}
    if load.token_bytes:
        parts["pixels"] = reading.together * load.sequence_pixels
        parts["decoding"] = DECODERS * DECODING * load.sequence_pixels / max(1, _images(stage))
    return parts | _ranks(config, reading.rollout.engine, model, load, given=True)


def _ranks(
    config: RunConfig, engine: EngineConfig, model: ModelLoad | None, load: RolloutLoad, given: bool
) -> dict[str, float]:
    """Return what the ranks of an engine hold together: on a CPU the model, and what it computes.

    Args:
        config: The run, as it is on its devices.
        engine: Settings of the engine.
        model: The model that it serves; None if its widths are not known.
        load: What it has to hold.
        given: Whether it scores or reads given tokens.
    """
    ranks, parts = engine.tensor_parallel_size, dict[str, float]()
    if not config.use_gpu:
        # Patches of bytes are twice as many numbers, in the model's type; the tower makes as many again.
        width = 4 if model is None else model.width
        parts["patches"] = 2.0 * 2 * width * max(STEP_TOKENS, load.max_length) * load.token_bytes
        cache = CPU_CACHE if engine.kv_cache_gb is None else engine.kv_cache_gb * GIB
        parts["weights and cache"] = ranks * cache
        if model is not None:
            parts["weights and cache"] += model.width * model.shape.parameters
            if given:  # every rank gets those of the whole vocabulary
                parts["logits"] = ranks * given_logits(model.shape, load.max_length)
    # Several ranks are processes beside the engine's own.
    return parts | {"process": (1 if ranks == 1 else 1 + ranks) * _process(config)}


def _learner(
    config: RunConfig, stage: StageConfig, model: ModelLoad | None, load: RolloutLoad, host: Host
) -> dict[str, float]:
    parts: dict[str, float] = {}
    if load.token_bytes:
        room = math.inf if host.memory is None else SHARE_OF_PIXELS * host.memory / stage.learners
        longest = float(load.max_length * load.token_bytes)
        parts["pixels"] = max(longest, min(load.episodes * load.sequence_pixels, room))
        parts["decoding"] = DECODERS * DECODING * load.sequence_pixels / max(1, _images(stage))
    parts["tokens of the batch"] = float(load.episodes * (load.max_length * (TOKEN + TOKEN_SENT) + EPISODE))
    learner = stage.load()
    if model is not None and learner is not None:
        if not config.use_gpu:
            parts["training"] = learner_memory(model, learner).peak
        elif learner.offloading:
            parts["offloaded activations"] = float(
                learner.tokens * model.shape.layers * model.shape.hidden * model.width
            )
    return parts | {"process": _process(config)}


def _images(stage: StageConfig) -> int:
    """Return how many images an episode shows."""
    return max((use.task.max_turns for use in stage.tasks_played()), default=1)
