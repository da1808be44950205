"""Whether rendering and collation keep up with the model, and whether they leak.

    python scripts/bench_data.py                    about two minutes on 2 cores
    python scripts/bench_data.py --check --json bench.json

The dialogues are those of `bench_sft.py`: mixed lengths, two thirds with images. Every one is rendered,
decoded, resized and packed anew; what the model does with the same rows is one forward and backward pass of
the tiny model, the smallest there is: a larger one leaves more time.

Measured, each with its goal:
    data       seconds of the model's pass over those of the data, row by row in turns: at least 5.
    memory     growth of the process over many steps with every cache full, in MB: at most 20.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmark
import psutil
from bench_sft import BATCH, MAX_LENGTH, write_dialogues
from torch import Tensor
from tqdm import tqdm

from posttrain.data.dataset import Dataset
from posttrain.data.mixing import Mixture
from posttrain.models.load import load_model
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import add_supervised_head
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.rendering import Renderer
from posttrain.training.supervised.batches import PackedBatches, RenderedDraws

GOALS = {"data_ratio": (">=", 5.0), "memory_growth_mb": ("<=", 20.0)}
#: Steps before memory is first looked at: the caches below are full by then.
SETTLING = 5


def open_renderer(folder: Path, cache_bytes: int) -> Renderer:
    """The checkpoint's renderer, with a pixel cache of a given size."""
    processor = Renderer.from_pretrained(folder, "qwen3_vl", 64**2, 160**2).processor
    return Renderer(processor, "qwen3_vl", cache_bytes)


def steps(folder: Path, mixture: Mixture, model: Any, count: int, cache_bytes: int) -> Iterator[dict]:
    """What a worker gets for each of `count` steps; nothing has been rendered before."""
    renderer = open_renderer(folder, cache_bytes)
    draws = RenderedDraws(mixture, renderer, MAX_LENGTH, count * BATCH)
    batches = PackedBatches(draws, renderer, model.base_model.get_rope_index, BATCH)
    yield from (batches([{"draw": step}]) for step in range(count))


def train(model: Any, batch: dict[str, Tensor]) -> None:
    """One forward and backward pass."""
    labels = batch.pop("labels")
    (-model(**batch, supervised_labels=labels).mean()).backward()
    model.zero_grad()


def speed(folder: Path, mixture: Mixture, model: Any, count: int) -> dict[str, Any]:
    """The data's seconds against the model's, step by step; the first step warms up."""
    ratios = []
    begun = time.perf_counter()
    for share in tqdm(steps(folder, mixture, model, count + 1, 2**29), total=count + 1, desc="speed"):
        rows = [make() for make in share["micro_batches"]]
        rendered = time.perf_counter()
        for row in rows:
            train(model, row)
        trained = time.perf_counter()
        ratios.append((trained - rendered) / (rendered - begun))
        begun = time.perf_counter()
    ratios = ratios[1:]
    return {"data_ratio": statistics.median(ratios), "data_ratio_spread": [min(ratios), max(ratios)]}


def memory(folder: Path, mixture: Mixture, model: Any, count: int) -> dict[str, Any]:
    """Growth over many steps that the model does not take, with a pixel cache of 8 MB that overflows."""
    process, before = psutil.Process(), 0.0
    for step, share in enumerate(
        tqdm(steps(folder, mixture, model, count, 2**23), total=count, desc="memory")
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


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tiny("qwen3_vl", folder)
        write_dialogues(folder, (options.steps + 1) * BATCH)
        mixture = Mixture({"bench": Dataset(folder / "data.jsonl")}, {"bench": 1.0}, seed=0)
        model = load_model(folder, dtype="float32")
        add_supervised_head(model)
        use_packed_attention(model)
        figures = speed(folder, mixture, model, options.steps)
        return figures | memory(folder, mixture, model, options.batches)


def main() -> int:
    """Measure, print and compare."""
    parser = benchmark.parser(__doc__)
    parser.add_argument("--steps", type=int, default=8, help="steps for the speed (default: 8)")
    parser.add_argument("--batches", type=int, default=300, help="steps for the memory (default: 300)")
    options = parser.parse_args()
    return benchmark.report(measure(options), GOALS, options)


if __name__ == "__main__":
    sys.exit(main())
