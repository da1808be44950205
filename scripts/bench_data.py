"""Whether datasets open quickly, and rendering and collation keep up with the model and do not leak.

    python scripts/bench_data.py                    about four minutes on 2 cores
    python scripts/bench_data.py --check --json bench.json

The dialogues are those of `bench_sft.py`: mixed lengths, two thirds with images. Every one is rendered,
decoded, resized and packed anew; what the model does with the same rows is one forward and backward pass of
the tiny model, the smallest there is: a larger one leaves more time.

Measured, each with its goal:
    open       seconds of a second process to open 100,000 rows, each with an image of its own: as a worker
               does (`open_s`) and looking for changed images (`open_look_again_s`): at most 1. The memory
               that it takes: at most 50 MB. How many of four changes it notices (in the data file's size, in
               its contents alone, in an image, a damaged index): 4. The first opening is shown beside it.
    data       seconds of the model's pass over those of the data, row by row in turns: at least 5.
    images     a packed step of eight ranks, simulated one after another by two threads, whose samples show an
               image of 4 megapixels each, half of them JPEG and half PNG. How often each image is decoded
               (`decodes_per_image`): 1. Seconds from the step's draws to its micro-batches over those in
               which these threads decode each image and do nothing else (`images_ratio`): at most 5.
    memory     growth of the process over many steps with every cache full, in MB: at most 20.
"""

import argparse
import gc
import io
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias
from unittest import mock

import benchmark
import psutil
import torch
from bench_sft import BATCH, MAX_LENGTH, write_dialogues
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset
from posttrain.data.mixing import Mixture
from posttrain.data.sealing import INDEXES
from posttrain.media.images import open_image
from posttrain.models.load import load_model
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import add_supervised_head
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering import pixel_making
from posttrain.rendering.pixel_limits import PixelLimits
from posttrain.rendering.rendering import Renderer
from posttrain.training.supervised import batches
from posttrain.training.supervised.batches import PackedBatches, RankBatch, RenderedDraws

GOALS = {
    "open_s": ("<=", 1.0),
    "open_look_again_s": ("<=", 1.0),
    "open_memory_mb": ("<=", 50.0),
    "changes_noticed": (">=", 4.0),
    "data_ratio": (">=", 5.0),
    "decodes_per_image": ("<=", 1.0),
    "images_ratio": ("<=", 5.0),
    "memory_growth_mb": ("<=", 20.0),
}
#: What a benchmark measured.
Figures: TypeAlias = dict[str, object]
#: Ranks of the step with large images, and samples of each.
RANKS, RANK_SAMPLES = 8, 2
#: Width and height of a large image.
SIDE = 2048
#: Steps before memory is first looked at: the caches below are full by then.
SETTLING = 5


#: Opens a dataset as a process of its own: seconds, MB that it takes, fingerprint, rows and broken rows.
OPEN = """
import json, logging, sys, time
from pathlib import Path
import psutil
from posttrain.config import DatasetConfig
from posttrain.data.sources import load_samples
logging.disable()
folder, process = Path(sys.argv[1]), psutil.Process()
source = {"path": str(folder / "rows.jsonl")}
config = DatasetConfig(name="rows", description="Rows.", licence="MIT", source=source)
before, begun = process.memory_info().rss, time.perf_counter()
dataset = load_samples(config, folder, folder / "cache", look_again=sys.argv[2] == "again")
found = [time.perf_counter() - begun, (process.memory_info().rss - before) / 2**20, dataset.fingerprint]
print(json.dumps([*found, len(dataset), len(dataset.broken)]))
"""


def open_rows(folder: Path, how: str) -> tuple[float, float, str, int, int]:
    """Open the rows in a process of its own; see `OPEN`."""
    command = [sys.executable, "-c", OPEN, str(folder), how]
    return tuple(json.loads(subprocess.check_output(command)))


def write_picture_rows(folder: Path, count: int) -> None:
    """Write rows that show an image each, every one a file of its own; one row of a thousand is broken."""
    (folder / "images").mkdir()
    encoded = io.BytesIO()
    Image.effect_noise((48, 48), 50).save(encoded, "PNG")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in tqdm(range(count), desc="writing rows"):
            (folder / "images" / f"{number}.png").write_bytes(encoded.getvalue())
            shown = [{"type": "image", "image": f"images/{number}.png"}, {"type": "text", "text": "What?"}]
            turns = [
                {"role": "user", "content": shown},
                {"role": "assistant", "content": f"Number {number}."},
            ]
            file.write(json.dumps({"id": str(number), "messages": turns if number % 1000 else []}) + "\n")


def opening(folder: Path, count: int) -> Figures:
    """Open rows for the first time, then again, then after each of several changes.

    What is quick is the best of three: other processes of the machine have no part in it.
    """
    write_picture_rows(folder, count)
    rows, first = folder / "rows.jsonl", open_rows(folder, "again")
    again = min(open_rows(folder, "again") for _ in range(3))
    worker = min(open_rows(folder, "worker") for _ in range(3))
    assert first[2:] == again[2:] == worker[2:]
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user", "content": "One more?"}]}\n')
    longer = open_rows(folder, "worker")
    content = rows.read_bytes()
    rows.write_bytes(content.replace(b"What?", b"Which", 1))
    other = open_rows(folder, "worker")
    Image.new("RGB", (48, 48)).save(folder / "images" / "1.png")
    repainted = open_rows(folder, "again")
    (index,) = (folder / "cache" / INDEXES).glob("*.index")
    index.write_bytes(index.read_bytes()[:-1000])
    repaired = open_rows(folder, "worker")
    noticed = [
        longer[3] == first[3] + 1,
        other[2] != longer[2],
        repainted[2] != other[2],
        repaired[2:] == repainted[2:],
    ]
    return {
        "open_rows": count,
        "first_open_s": first[0],
        "first_open_memory_mb": first[1],
        "open_s": worker[0],
        "open_look_again_s": again[0],
        "open_memory_mb": max(worker[1], again[1]),
        "changes_noticed": sum(noticed),
    }


def open_renderer(folder: Path, limits: PixelLimits, max_pixels: int = 160**2) -> Renderer:
    """The checkpoint's renderer, with a pixel cache of given limits."""
    processor = Renderer.from_pretrained(folder, "qwen3_vl", 64**2, max_pixels).processor
    return Renderer(processor, "qwen3_vl", limits, pixel_dtype=torch.bfloat16)


def steps(
    folder: Path, mixture: Mixture, model: PreTrainedModel, count: int, limits: PixelLimits
) -> Iterator[RankBatch]:
    """What a worker gets for each of `count` steps; nothing has been rendered before."""
    renderer = open_renderer(folder, limits)
    draws = RenderedDraws(mixture, renderer, MAX_LENGTH, count * BATCH)
    rope_index = model.base_model.get_rope_index
    collator = PackedBatches(draws, renderer, rope_index, BATCH)  # pyright: ignore[reportArgumentType]
    yield from (collator([{"draw": step}]) for step in range(count))


def train(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    """One forward and backward pass."""
    labels = batch.pop("labels")
    (-model(**batch, supervised_labels=labels).mean()).backward()
    model.zero_grad()


def speed(folder: Path, mixture: Mixture, model: PreTrainedModel, count: int) -> Figures:
    """The data's seconds against the model's, step by step; the first step warms up."""
    ratios = []
    begun = time.perf_counter()
    for share in tqdm(
        steps(folder, mixture, model, count + 1, PixelLimits(2**29)), total=count + 1, desc="speed"
    ):
        rows = [make() for make in share["micro_batches"]]
        rendered = time.perf_counter()
        for row in rows:
            train(model, row)
        trained = time.perf_counter()
        ratios.append((trained - rendered) / (rendered - begun))
        begun = time.perf_counter()
    ratios = ratios[1:]
    return {"data_ratio": statistics.median(ratios), "data_ratio_spread": [min(ratios), max(ratios)]}


def write_large_images(folder: Path) -> list[Path]:
    """Write a row for each sample of the step of `RANKS`, with an image like a photograph's."""
    paths = []
    with (folder / "large.jsonl").open("w", encoding="utf-8") as file:
        for number in tqdm(range(RANKS * RANK_SAMPLES), desc="writing images"):
            noise = Image.effect_noise((SIDE, SIDE), 12)
            blurred = Image.effect_noise((SIDE // 16, SIDE // 16), 90).resize((SIDE, SIDE))
            picture = Image.merge("RGB", (blurred, Image.blend(blurred, noise, 0.2), noise))
            paths.append(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
            picture.save(paths[-1], quality=90)  # which is for JPEG alone
            # Of different lengths, so that a rank that measures a sample is not the one that trains on it.
            asked = {"type": "text", "text": "What? " * (7 * number % 16)}
            shown = [{"type": "image", "image": paths[-1].name}, asked]
            turns = [{"role": "user", "content": shown}, {"role": "assistant", "content": "Noise."}]
            file.write(json.dumps({"id": str(number), "messages": turns}) + "\n")
    return paths


class Ranks:
    """Ranks of a process group that are simulated by threads, each of which is one of them at a time.

    Args:
        lengths: [S] tokens of each sample, which the ranks tell each other.
    """

    def __init__(self, lengths: Tensor) -> None:
        self._lengths = lengths
        self._own = threading.local()

    def be(self, rank: int) -> None:
        """Make this thread a rank."""
        self._own.rank = rank

    def here(self) -> AbstractContextManager[object]:
        """Put the simulation in the place of the collectives that batches are made with."""
        found = {
            "rank": lambda: self._own.rank,
            "world_size": lambda: RANKS,
            "sum_over_ranks": lambda _: self._lengths,
        }
        return mock.patch.multiple(batches, **found)


def large_images(folder: Path, model: PreTrainedModel, count: int) -> Figures:
    """Make a step's micro-batches with large images, and decode the same images alone, in turns."""
    paths = write_large_images(folder)
    mixture = Mixture({"large": Dataset(check_rows(folder / "large.jsonl"))}, {"large": 1.0}, seed=0)
    renderer = open_renderer(folder, PixelLimits(0), SIDE**2)
    draws = RenderedDraws(mixture, renderer, 10**9, len(paths))
    ranks = Ranks(torch.tensor([len(draws.sample(draw)[0].token_ids) for draw in range(len(paths))]))
    decodes: Counter[str] = Counter()

    def counted(path: str) -> Image.Image:
        decodes[path] += 1
        return open_image(path)

    def run(rank: int) -> None:
        ranks.be(rank)
        own = open_renderer(folder, PixelLimits(2**29 // RANKS), SIDE**2)
        draws = RenderedDraws(mixture, own, 10**9, len(paths))
        rope_index = model.base_model.get_rope_index
        collator = PackedBatches(draws, own, rope_index, len(paths))  # pyright: ignore[reportArgumentType]
        for make in collator([{"draw": rank}])["micro_batches"]:
            make()

    ratios = []
    torch.set_num_threads(1)
    with (
        ranks.here(),
        mock.patch.object(pixel_making, "open_image", counted),
        ThreadPoolExecutor(2) as threads,
    ):
        for _ in tqdm(range(count), desc="images"):
            begun = time.perf_counter()
            list(threads.map(open_image, paths))
            decoded = time.perf_counter()
            list(threads.map(run, range(RANKS)))
            ratios.append((time.perf_counter() - decoded) / (decoded - begun))
    return {
        "decodes_per_image": max(decodes.values()) / count if len(decodes) == len(paths) else math.inf,
        "images_ratio": statistics.median(ratios),
        "images_ratio_spread": [min(ratios), max(ratios)],
    }


def memory(folder: Path, mixture: Mixture, model: PreTrainedModel, count: int) -> Figures:
    """Growth over many steps that the model does not take, with a pixel cache of 8 MB that overflows."""
    process, before = psutil.Process(), 0.0
    for step, share in enumerate(
        tqdm(steps(folder, mixture, model, count, PixelLimits(2**23)), total=count, desc="memory")
    ):
        for make in share["micro_batches"]:
            make()
        if step == SETTLING:
            gc.collect()
            before = process.memory_info().rss / 2**20
    gc.collect()
    return {
        "memory_batches": count,
        "memory_growth_mb": process.memory_info().rss / 2**20 - before,
    }


def measure(options: argparse.Namespace) -> Figures:
    """Every figure."""
    with tempfile.TemporaryDirectory() as name:
        figures = opening(Path(name), options.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tiny("qwen3_vl", folder)
        write_dialogues(folder, (options.steps + 1) * BATCH)
        mixture = Mixture({"bench": Dataset(check_rows(folder / "data.jsonl"))}, {"bench": 1.0}, seed=0)
        model = load_model(folder, dtype="float32")
        add_supervised_head(model)
        use_packed_attention(model)
        figures |= speed(folder, mixture, model, options.steps)
        figures |= large_images(folder, model, options.steps)
        return figures | memory(folder, mixture, model, options.batches)


def main() -> int:
    """Measure, print and compare."""
    parser = benchmark.parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="rows that are opened (default: 100000)")
    parser.add_argument("--steps", type=int, default=8, help="steps for the speed (default: 8)")
    parser.add_argument("--batches", type=int, default=300, help="steps for the memory (default: 300)")
    options = parser.parse_args()
    return benchmark.report(measure(options), GOALS, options)


if __name__ == "__main__":
    sys.exit(main())
