"""The estimate of memory against the measured peak of real training steps.

    python scripts/bench_memory.py                        half a minute on a CPU
    python scripts/bench_memory.py --check --json bench.json
    python scripts/bench_memory.py --device cuda --model Qwen/Qwen3-VL-2B-Instruct --tokens 16384

Each row is a model of random weights in FSDP2 on one rank, trained for two steps on rows of tokens, those of
images where the model sees them: with and without checkpointing, in full and with LoRA. On a CPU the bytes of
all tensors are counted as they come and go (`live_bytes.py`), on a GPU by CUDA's allocator. The estimate is
the one that `posttrain validate` compares with a card.

Measured, with its goal:
    ratio    estimate over peak: between 0.85 and 1.15.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from live_bytes import LiveBytes
from torch import Tensor, nn
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from posttrain.config import LoraConfig
from posttrain.config.memory import LearnerLoad, ModelLoad, learner_memory
from posttrain.config.shapes import Shape, shape_of
from posttrain.models.load import (
    VISION_TOWER,
    auto_model,
    freeze,
    leave_inputs_without_gradients,
    sees_images,
)
from posttrain.models.lora import with_lora
from posttrain.models.supervised_head import add_supervised_head
from posttrain.quickstart.tiny import TINY_TYPES, build_tiny
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.sharding import shard

GOAL = 0.15
WIDTHS = {torch.float32: 4, torch.bfloat16: 2}


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: Name of the model.
        tokens: Tokens of the row.
        checkpointing: Whether activations are computed twice.
        rank: Rank of the adapters; 0 trains the weights.
        dtype: Type of the model.
        rows: Micro-batches of a step.
    """

    model: str
    tokens: int
    checkpointing: bool
    rank: int = 0
    dtype: str = "float32"
    rows: int = 1


@dataclass(frozen=True)
class Measured:
    """Estimate and peak of a case, in bytes."""

    case: Case
    estimate: float
    peak: int

    @property
    def ratio(self) -> float:
        """The estimate over the peak."""
        return self.estimate / self.peak


def smollm2(layers: int = 4, vocabulary: int = 8192) -> LlamaConfig:
    """Return the widths of SmolLM2-135M, with fewer layers and tokens, so that a step takes a second."""
    return LlamaConfig(
        hidden_size=576,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )


def config_of(name: str, folder: Path) -> PreTrainedConfig:
    """Return a model's configuration: one of the tiny models, SmolLM2's, or a checkpoint's."""
    if name == "smollm2":
        return smollm2()
    if name in TINY_TYPES:
        if not (folder / name).is_dir():
            build_tiny(name, folder / name)
        return AutoConfig.from_pretrained(folder / name)
    return AutoConfig.from_pretrained(name)


def model_of(config: PreTrainedConfig, case: Case, device: torch.device) -> nn.Module:
    """Make a model of random weights as `load_policy` would load it, with the case's settings."""
    config.use_cache = False
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with device:
        model = auto_model(config).from_config(config, dtype=getattr(torch, case.dtype))
    leave_inputs_without_gradients(model)
    if sees_images(config):
        freeze(model, VISION_TOWER)
    add_supervised_head(model)
    if case.checkpointing:
        model.gradient_checkpointing_enable()
    trained = with_lora(model, LoraConfig(rank=case.rank), 0) if case.rank else model
    shard(trained, "none", device)
    return trained.train()


def batch_of(config: PreTrainedConfig, shape: Shape, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """Make a row of which every token but the last few is part of one image, if the model sees any."""
    text = torch.arange(tokens) % min(100, shape.vocabulary)
    if shape.tower is None:
        return {"input_ids": text[None].to(device)}
    merge = shape.tower.merge
    side = math.isqrt(tokens - 2)
    text[0], text[1 : 1 + side**2] = config.vision_start_token_id, config.image_token_id
    grid = torch.tensor([[1, side * merge, side * merge]])
    return {
        "input_ids": text[None].to(device),
        "pixel_values": torch.randn(side**2 * merge**2, shape.tower.patch, device=device),
        "image_grid_thw": grid.to(device),
        "mm_token_type_ids": (text[None] == config.image_token_id).int().to(device),
        "position_ids": torch.arange(tokens, device=device).expand(4, 1, tokens).contiguous(),
    }


def train(model: nn.Module, batch: dict[str, Tensor], rows: int) -> Iterator[None]:
    """Make two optimiser steps; yield before the second, whose peak counts."""
    optimizer = build_optimizer([model], "adamw", 1e-4, 0.0)
    for step in range(2):
        if step:
            yield
        for _ in range(rows):
            (-model(**batch, supervised_labels=batch["input_ids"]).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()


def peak_of(model: nn.Module, batch: dict[str, Tensor], rows: int, device: torch.device) -> int:
    """Return the most bytes that live at once in a step."""
    if device.type == "cuda":
        for _ in train(model, batch, rows):
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    with LiveBytes() as live:
        live.add(*model.parameters(), *model.buffers(), *batch.values())
        for _ in train(model, batch, rows):
            live.peak = live.now
    return live.peak


def measure(case: Case, folder: Path, device: torch.device) -> Measured:
    """Measure a case, and estimate it."""
    config = config_of(case.model, folder)
    shape = shape_of(config.to_dict())
    assert shape is not None, f"{case.model} has no widths"
    model = model_of(config, case, device)
    peak = peak_of(model, batch_of(config, shape, case.tokens, device), case.rows, device)
    load = LearnerLoad(
        case.tokens,
        accumulates=case.rows > 1,
        checkpointing=case.checkpointing,
        lora=LoraConfig(rank=case.rank) if case.rank else None,
    )
    estimate = learner_memory(ModelLoad(shape, WIDTHS[getattr(torch, case.dtype)]), load).peak
    return Measured(case, estimate, peak)


def cases(models: list[str], tokens: int, dtype: str) -> Iterator[Case]:
    """Yield the cases of some models."""
    for model, checkpointing, rank in product(models, (False, True), (0, 8)):
        yield Case(model, tokens, checkpointing, rank, dtype, rows=2)


def main() -> None:
    """Measure, print a table, and with --check fail where an estimate is off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["smollm2", *TINY_TYPES[:3]], help="what is measured")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(
        "--check", action="store_true", help="fail where an estimate is off by more than 15 %%"
    )
    options = parser.parse_args()
    found: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.model, options.tokens, options.dtype):
            measured = measure(case, Path(folder), torch.device(options.device))
            found.append(measured)
            how = f"{'checkpointed' if case.checkpointing else 'plain':<13}{'lora' if case.rank else 'full'}"
            sizes = f"{measured.estimate / 2**20:10.1f}{measured.peak / 2**20:10.1f} MiB{measured.ratio:8.3f}"
            print(f"{case.model:<14}{how:<19}{sizes}", flush=True)
    if options.json:
        rows = [asdict(each.case) | {"estimate": each.estimate, "peak": each.peak} for each in found]
        options.json.write_text(json.dumps(rows, indent=1))
    worst = max(found, key=lambda each: abs(each.ratio - 1))
    print(f"worst ratio {worst.ratio:.3f} ({worst.case.model}); goal 1 ± {GOAL}")
    if options.check and abs(worst.ratio - 1) > GOAL:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
