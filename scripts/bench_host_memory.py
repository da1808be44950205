"""The host memory of a rollout's processes against what `posttrain validate` says, step by step.

    python scripts/bench_host_memory.py                                a minute on two cores
    python scripts/bench_host_memory.py --check --json bench.json
    python scripts/bench_host_memory.py --groups 64 --group-size 16 --pixels 4000000 --steps 30 --room 1

A pool with a real worker plays episodes on an engine that looks at an image in every turn but the last, as
many open at once as the engine has places; a learner gets each batch and loads pixels of it, micro-batch by
micro-batch. Nothing is computed with them, so that what is measured is what images and tokens take.

Measured after every step, each with its goal:
    MiB of each process that are its own, and of the object store    below the estimate
    growth from the third step to the last                           below 10 % of the estimate
"""

import argparse
import json
import math
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from PIL import Image
from ray._private.internal_api import memory_summary

from posttrain.config import EngineConfig, ModelConfig, RunConfig
from posttrain.config.fitting import model_load
from posttrain.config.host_memory import OBJECT_STORE, Host, host_processes
from posttrain.config.shapes import model_shape
from posttrain.doctor.machine import memory_bytes
from posttrain.inference.engine import Completion, Request
from posttrain.joints import Environment, EnvironmentReply, PluginSettings, Tool
from posttrain.media.images import save_image
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.collation import collate, prepare
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob
from posttrain.rollout.play import RolloutPool
from posttrain.rollout.worker import RolloutSetup
from posttrain.run.actors import Actor
from posttrain.run.cluster import cluster
from posttrain.types import Block, ImageRef, Message, Sample, Trajectory, text_message

MIB = 2**20
#: Growth that is allowed from the third step to the last, as a part of the estimate.
GROWTH = 0.1
LOOK = "look"
#: Width of a patch, as Qwen3-VL's; with the tiny model's own an image would be four times as many tokens.
PATCH = 16
#: Pixels of a token: four patches.
TOKEN_PIXELS = (2 * PATCH) ** 2
#: Episodes of a batch, at the most, whose pixels the learner loads: it does so with one after another, and
#: holds what it has decoded within its room; each takes seconds where it shows six images of 4 megapixels.
LOADED = 8
#: What is measured, and what of its estimate is not there: the model.
MEASURED = ("the run itself", "engine", "learner", OBJECT_STORE)
NOT_HERE = ("weights and cache", "training", "patches")


class LookingEngine:
    """An engine that asks for another look until it is told that there is none."""

    def __init__(self, checkpoint: Path, end_token_id: int, banned: Sequence[int], **settings: Any) -> None:
        config: EngineConfig = settings["config"]
        self.capacity, self.version = config.max_num_seqs, 0
        self.step_began: float | None = None
        self._end = end_token_id
        self._in_flight: dict[str, Request] = {}

    @property
    def busy(self) -> bool:
        """Whether requests are in flight."""
        return bool(self._in_flight)

    def submit(self, request: Request) -> None:
        """Take a request, and hold it with its pixels."""
        assert all(int(image.pixels[0, 0, 0]) >= 0 for image in request.images)
        self._in_flight[request.id] = request

    def step(self) -> list[Completion]:
        """End about half of the requests."""
        ended = [each for each in self._in_flight.values() if (each.seed + time.monotonic_ns()) % 2]
        return [self._completion(self._in_flight.pop(each.id)) for each in ended]

    def abort(self, ids: Sequence[str] | None = None) -> None:
        """Drop requests."""
        for each in list(self._in_flight if ids is None else ids):
            self._in_flight.pop(each, None)

    def load_weights(self, path: Path, version: int) -> None:
        """Serve another version."""
        self.version = version

    def _completion(self, request: Request) -> Completion:
        ids = [5, self._end][-request.max_tokens :]
        count = len(ids)
        return Completion(
            id=request.id,
            token_ids=ids,
            logprobs=[-0.5] * count,
            finish_reason="stop",
            versions=[self.version] * count,
            approximate=[False] * count,
        )


class Looking(Environment):
    """Shows another of some images after every turn but the last."""

    def __init__(self, turns: int, images: Path) -> None:
        self._left, self._images = turns, sorted(images.iterdir())

    def start(self, sample: Sample) -> tuple[Message, ...]:
        """Begin with the prompt."""
        self._draw = np.random.default_rng(time.monotonic_ns())
        return sample.messages

    def step(self, assistant_text: str) -> EnvironmentReply:
        """Answer with an image."""
        self._left -= 1
        if not self._left:
            return EnvironmentReply(None, (), done=True)
        path = self._images[self._draw.integers(len(self._images))]
        image = Block("image", image=ImageRef(str(path), path.stem))
        return EnvironmentReply(Message("user", (image,)), (), done=False)

    def close(self) -> None:
        """Hold nothing."""


def make_looking(tools: Sequence[Any], max_turns: int, image_dir: Path, game: Any = None) -> Environment:
    """Make the environment of an episode."""
    return Looking(max_turns, image_dir)


def no_tools(references: Iterable[PluginSettings], base_dir: Path | None = None) -> list[Tool]:
    """Load the tools of a task, of which there are none."""
    return []


class PixelLearner:
    """A learner that loads the pixels of its micro-batches, and learns nothing."""

    def start(self, checkpoint: Path, model: ModelConfig) -> None:
        """Load the renderer."""
        self._renderer = Renderer.from_config(checkpoint, model)

    def update(self, trajectories: list[Trajectory]) -> int:
        """Hold a batch, and load the pixels of some of its episodes in turn; return their bytes."""
        some = trajectories[:: math.ceil(len(trajectories) / LOADED)]
        prepare(some, self._renderer)
        return sum(collate([each], self._renderer)["pixel_values"].nbytes for each in some)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    groups: int
    group_size: int
    turns: int
    pixels: int
    images: int
    places: int
    steps: int
    room: float

    @property
    def max_length(self) -> int:
        """Most tokens of an episode: an image in each turn, and a few words."""
        return (self.turns + 1) * (self.pixels // TOKEN_PIXELS + 64)

    def run_config(self, checkpoint: Path) -> RunConfig:
        """Return the run whose memory is estimated."""
        rollout = {
            "max_length": self.max_length,
            "max_new_tokens": 16,
            "engine": {"max_num_seqs": self.places, "image_memory_gb": self.room},
        }
        task = {"data": "looks", "rewards": ["answer_accuracy"], "tools": [LOOK], "max_turns": self.turns}
        rl = {"stage": "rl", "max_steps": self.steps, "prompts_per_step": self.groups, "tasks": [task]}
        rl |= {
            "rollout": rollout,
            "algorithm": {"name": "sapo", "group_size": self.group_size, "mini_batches": 1},
        }
        model = {
            "name_or_path": str(checkpoint),
            "family": "qwen3_vl",
            "max_pixels": self.pixels,
            "dtype": "float32",
        }
        cluster_of = {"num_gpus": 0}
        return RunConfig.model_validate(
            {"name": "looks", "model": model, "cluster": cluster_of, "stages": [rl]}
        )


def write_images(folder: Path, count: int, pixels: int) -> None:
    """Store different images of a size, each named by its hash."""
    side = int(pixels**0.5)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        save_image(Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST), folder)


def own_bytes(pid: int) -> int:
    """Return the bytes of a process that no other shares with it."""
    return psutil.Process(pid).memory_full_info().uss


def store_bytes() -> int:
    """Return what objects take in the shared memory."""
    told = memory_summary(address=ray.get_runtime_context().gcs_address, stats_only=True)
    line = next(line for line in told.splitlines() if "Plasma memory usage" in line)
    return int(float(line.split()[3]) * MIB)


def make_model(folder: Path) -> Path:
    """Write the tiny model, with patches of `PATCH`; its weights, which nothing loads, stay as they are."""
    checkpoint = folder / "model"
    build_tiny("qwen3_vl", checkpoint)
    for name in ("config.json", "processor_config.json"):
        path = checkpoint / name
        path.write_text(re.sub(r'"patch_size": \d+', f'"patch_size": {PATCH}', path.read_text()))
    return checkpoint


def computed(config: RunConfig) -> dict[str, float]:
    """Return the most bytes of each process, by what it is."""
    shape = model_shape(config.model)
    assert shape is not None
    host = Host(float(memory_bytes()))
    processes = host_processes(config, config.stages[0], model_load(config.model, shape), host)
    # Nothing is computed here, and no checkpoint is written.
    return {
        each.name: sum(size for part, size in each.parts.items() if part not in NOT_HERE)
        for each in processes
        if each.name in MEASURED
    }


def measure(settings: Settings, folder: Path) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Play steps; return the bytes of every process after each, and what was computed beforehand."""
    checkpoint, images = make_model(folder), folder / "images"
    write_images(images, settings.images, settings.pixels)
    files = sorted(images.iterdir())
    config = settings.run_config(checkpoint)
    stage = config.stages[0]
    assert stage.episodes is not None
    setup = RolloutSetup(
        model=config.model,
        checkpoint=checkpoint,
        engine_config=stage.episodes.engine,
        max_length=stage.episodes.max_length,
        engine=f"{__file__}:LookingEngine",
        tasks=[use.task for use in stage.tasks_played()],
        image_dir=images,
        load_tools=no_tools,
        make_environment=make_looking,
    )
    bounds = computed(config)
    pool = RolloutPool(setup, actors=1, use_gpu=False)
    learner = Actor(PixelLearner, use_gpu=False)
    ray.get(learner.call(PixelLearner.start, checkpoint, config.model))
    found: dict[str, list[int]] = {name: [] for name in bounds}
    try:
        for step in range(settings.steps):
            play(settings, pool, learner, files, step)
            pids = {
                "the run itself": psutil.Process().pid,
                "learner": pid_of(learner),
                "engine": engine_pid(pool),
            }
            for name, pid in pids.items():
                found[name].append(own_bytes(pid))
            found["object store"].append(store_bytes())
    finally:
        pool.close()
        learner.kill()
    return found, bounds


def play(
    settings: Settings, pool: RolloutPool, learner: Actor[PixelLearner], files: Sequence[Path], step: int
) -> None:
    """Play the episodes of a step, and have them learned."""
    groups = []
    for index in range(settings.groups):
        path = files[(step * settings.groups + index) % len(files)]
        shown = Block("image", image=ImageRef(str(path), path.stem))
        message = Message("user", (shown, *text_message("user", "What is it?").content))
        groups.append(
            GroupJob(
                group=index,
                sample=Sample(f"{index}", (message,)),
                task="looks",
                size=settings.group_size,
                seed=step,
            )
        )
    limits = Limits(16, settings.max_length)
    trajectories = pool.rollout(groups, limits).trajectories
    batch = ray.put(trajectories)
    ray.get(learner.call(PixelLearner.update, batch))  # pyright: ignore[reportArgumentType]


def pid_of(actor: Actor[Any]) -> int:
    """Return an actor's process."""
    process = actor.process()
    assert process is not None
    return process.pid


def engine_pid(pool: RolloutPool) -> int:
    """Return the process of the only worker."""
    for process in psutil.Process().children(recursive=True):
        if "RolloutWorker" in " ".join(process.cmdline()):
            return process.pid
    raise LookupError("no worker runs")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--pixels", type=int, default=1_000_000, help="of an image")
    parser.add_argument("--images", type=int, default=48, help="different images that are looked at")
    parser.add_argument("--places", type=int, default=16, help="sequences that the engine samples at once")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--room", type=float, default=0.05, help="GiB for the pixels of the engine")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="fail where a goal is missed")
    return parser.parse_args()


def require_memory(settings: Settings) -> None:
    """Refuse to measure what this machine may not hold.

    Raises:
        SystemExit: If less is free than what was computed.
    """
    with tempfile.TemporaryDirectory() as folder:
        needed = sum(computed(settings.run_config(make_model(Path(folder)))).values())
    if needed > (free := psutil.virtual_memory().available):
        raise SystemExit(f"it may take {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free")


def main() -> None:
    """Measure, print a table, and with --check fail where a goal is missed."""
    options = parse()
    names = ("groups", "group_size", "turns", "pixels", "images", "places", "steps", "room")
    settings = Settings(**{name: getattr(options, name) for name in names})
    require_memory(settings)
    store = max(256, 60 * settings.groups * settings.group_size * settings.max_length // MIB)
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(num_cpus=2, num_gpus=0, object_store_mb=store, address=None),
    ):
        found, bounds = measure(settings, Path(folder))
    missed = False
    for name, sizes in found.items():
        if not sizes:
            continue
        growth = sizes[-1] - sizes[min(2, len(sizes) - 1)]
        missed |= max(sizes) > bounds[name] or growth > GROWTH * bounds[name]
        steps = " ".join(f"{size / MIB:.0f}" for size in sizes)
        computed = f"{bounds[name] / MIB:8.0f} MiB computed, growth {growth / MIB:6.1f} MiB"
        print(f"{name:<16}{computed}; steps: {steps}")
    if options.json:
        options.json.write_text(json.dumps({"settings": asdict(settings), "found": found, "bounds": bounds}))
    if options.check and missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
