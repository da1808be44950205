"""A learner's step on one GPU, and what its parts cost: one command, at most six minutes.

    python scripts/bench_gpu.py --json bench_gpu.json
    python scripts/bench_gpu.py --fused-layers liger --attn-implementation flash_attention_2
    python scripts/bench_gpu.py --tiny                 the same code on a CPU in under a minute

It takes torch, torchvision, transformers, peft, accelerate, pydantic, opencv-python-headless and this folder
tree, and neither Ray, vLLM, TRL nor datasets. The model has the shape of Qwen3-VL-2B and random weights; a
micro-batch is a packed row of 16,384 tokens, dialogues of different lengths with an image of one megapixel
each; a step has two. Everything but the data is what the stages run: the model's loading, FSDP2 with float32
masters, gradient checkpointing, packed attention, log-probs in the model's forward pass, guarded updates.
Rows are prepared before the clock starts.

Measured:
    matrix_tflops           rate of a large product of bfloat16 matrices on this card, against which MFU is.
    full_…, lora_…          of a step that trains all weights but the vision tower's, and one with adapters:
                            tokens a second, MFU (work of a step without what checkpointing does again),
                            the most memory held, and how far the estimate of `validate` is from it.
    kept_by_masters         share of the float32 weights that an update at 1e-6 changes: at least 0.99;
    kept_by_bfloat16        the same of bfloat16 weights with bfloat16 moments.
    logprobs_…              log-probs in chunks over those from all logits: time, and memory (at most 0.5).
    packed_…                packed attention over transformers' sdpa with a mask: time (at most 1) and memory.
Figures of memory need a GPU. Ratios are medians of rounds in which the sides take turns.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import benchmark
import torch
from bench_gpu_model import TINY, Sizes, build_2b, packed_rows
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from posttrain.config.lora import LoraConfig
from posttrain.config.memory import LearnerLoad, ModelLoad, learner_memory
from posttrain.config.model import ModelConfig
from posttrain.config.shapes import model_shape
from posttrain.models.logprobs import token_logprobs
from posttrain.models.lora import with_lora
from posttrain.models.packed_attention import packed_sdpa, use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.objectives.sft import sft_loss
from posttrain.quickstart.tiny import build_tiny
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.policy import Updates, load_policy
from posttrain.training.core.sharding import reduce_over_replicas, shard
from posttrain.training.core.update_guard import UpdateGuard

GIB = 2**30
GOALS = {
    "kept_by_masters": (">=", 0.99),
    "logprobs_memory_ratio": ("<=", 0.5),
    "packed_time_ratio": ("<=", 1.0),
    "full_estimate_error": ("<=", 0.15),
    "lora_estimate_error": ("<=", 0.15),
}
#: A rate at which bfloat16 loses most of an update, as RL has it.
RATE = 1e-6


def device_here() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def clock(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds that work takes, and the bytes that it holds at most beyond those held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
    return time.perf_counter() - begun, peak


def compare(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int, device: torch.device
) -> dict[str, Any]:
    """Ratios of two sides that take turns, after a turn of each to warm up."""
    for work in (ours, theirs):
        work()
    turns = [(clock(ours, device), clock(theirs, device)) for _ in range(rounds)]
    times = [mine[0] / other[0] for mine, other in turns]
    figures: dict[str, Any] = {
        f"{name}_time_ratio": statistics.median(times),
        f"{name}_time_ratio_spread": [min(times), max(times)],
        f"{name}_ms": 1000 * statistics.median(mine[0] for mine, _ in turns),
    }
    if device.type == "cuda":
        figures[f"{name}_memory_ratio"] = statistics.median(mine[1] / other[1] for mine, other in turns)
        figures[f"{name}_gib"] = turns[0][0][1] / GIB
        figures[f"{name}_other_gib"] = turns[0][1][1] / GIB
    return figures


def matrix_rate(sizes: Sizes, device: torch.device) -> float:
    """Operations a second of a product of two large bfloat16 matrices."""
    n = sizes.matrix
    left, right = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    clock(lambda: left @ right, device)
    seconds, _ = clock(lambda: [left @ right for _ in range(10)], device)
    return 10 * 2 * n**3 / seconds


def work_of_step(model: nn.Module, rows: list[dict[str, Tensor]], lora: bool) -> float:
    """Operations of a step's matrix products, without what checkpointing computes again.

    A product's backward pass is two more of the same size, or one where its matrix is fixed.
    """
    config: Any = model.get_submodule("base_model.model").config if lora else model.config  # pyright: ignore
    matrices = {
        part: sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and part in name and "lora_" not in name
        )
        for part in ("language_model.layers", "visual.blocks", "merger")
    }
    adapters = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    text, vision = config.text_config, config.vision_config
    head = text.vocab_size * text.hidden_size
    total = 0.0
    for row in rows:
        tokens, supervised = row["input_ids"].numel(), int((row["labels"] != IGNORED).sum())
        places = row["position_ids"][0, 0]
        lengths = nn.functional.pad((places == 0).nonzero().flatten(), (0, 1), value=tokens).diff().double()
        attention = 2 * float((lengths**2).sum()) * text.num_attention_heads * text.head_dim
        patches = row["image_grid_thw"].prod(-1).double()
        seen = 4 * float((patches**2).sum()) * vision.hidden_size * vision.depth
        passes = 2 if lora else 3
        total += 2 * matrices["language_model.layers"] * tokens * passes + 3 * 2 * adapters * tokens
        total += 3 * attention * text.num_hidden_layers + 2 * head * supervised * passes
        merged = matrices["merger"] * float(patches.sum()) / vision.spatial_merge_size**2
        total += 2 * matrices["visual.blocks"] * float(patches.sum()) + seen + 2 * merged * (1 if lora else 3)
    return total


def learner(sizes: Sizes, settings: ModelConfig, folder: Path, lora: LoraConfig | None) -> dict[str, Any]:
    """Figures of a learner's steps, all weights or adapters trained."""
    gc.collect()  # FSDP2's wrappers hold each other, and with them the model before
    device, name = device_here(), "full" if lora is None else "lora"
    loaded = load_policy(settings, folder)
    rows = packed_rows(sizes, loaded, folder, device)
    add_supervised_head(loaded)
    use_packed_attention(loaded)
    model = loaded if lora is None else with_lora(loaded, lora, seed=0)
    loaded.gradient_checkpointing_enable({"use_reentrant": False})
    work = work_of_step(model, rows, lora is not None)
    shard(model, "none", device)
    updates = Updates(
        [model],
        build_optimizer([model], "adamw", RATE, weight_decay=0.0),
        lambda update: 1.0,
        UpdateGuard(1, "Look for what is broken on this machine."),
        max_grad_norm=1.0,
    )
    supervised = sum(int((row["labels"] != IGNORED).sum()) for row in rows)
    kept: dict[str, float] = {}

    def step(last: bool) -> None:
        for row in rows:
            reduce_over_replicas(model, row is rows[-1])
            inputs = {key: tensor for key, tensor in row.items() if key != "labels"}
            logprobs = model(**inputs, supervised_labels=row["labels"])
            one = torch.zeros(len(logprobs), dtype=torch.long, device=device)
            sft_loss(logprobs, one, supervised, "token").backward()
        if last and lora is None:
            kept.update(kept_updates(model, updates))
        else:
            updates.step()

    model.train()
    step(last=False)
    turns = [clock(lambda: step(last=False), device)[0] for _ in range(sizes.steps)]
    held = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    step(last=True)
    tokens = sum(row["input_ids"].numel() for row in rows)
    seconds = statistics.median(turns)
    figures = {
        f"{name}_tokens": tokens,
        f"{name}_step_s": seconds,
        f"{name}_step_s_spread": [min(turns), max(turns)],
        f"{name}_tokens_per_s": tokens / seconds,
        f"{name}_tflops": work / seconds / 1e12,
        f"{name}_estimate_gib": estimate(settings, max(row["input_ids"].numel() for row in rows), lora) / GIB,
    }
    if device.type == "cuda":
        figures[f"{name}_peak_gib"] = held / GIB
        figures[f"{name}_estimate_error"] = abs(figures[f"{name}_estimate_gib"] * GIB / held - 1)
    return figures | kept


def estimate(settings: ModelConfig, tokens: int, lora: LoraConfig | None) -> float:
    """The bytes that `validate` expects of these steps."""
    shape = model_shape(settings)
    assert shape is not None
    load = LearnerLoad(tokens, accumulates=True, checkpointing=True, lora=lora)
    return learner_memory(ModelLoad(shape, width=2), load).peak


@torch.no_grad()
def kept_updates(model: nn.Module, updates: Updates) -> dict[str, float]:
    """Shares of weights that an update changes: of our masters, and of bfloat16 weights with its moments."""
    watched = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".layers.0." in name and parameter.ndim == 2
    ]
    before = [local(parameter).clone() for parameter in watched]
    halves = [nn.Parameter(weights.bfloat16()) for weights in before]
    for half, parameter in zip(halves, watched, strict=True):
        assert parameter.grad is not None
        half.grad = local(parameter.grad).bfloat16()
    was = [half.detach().clone() for half in halves]
    torch.optim.AdamW(halves, lr=RATE, weight_decay=0.0).step()
    updates.step()
    return {
        "kept_by_masters": changed(before, [local(parameter) for parameter in watched]),
        "kept_by_bfloat16": changed(was, halves),
    }


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, which here is all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def changed(before: list[Tensor], after: list[Any]) -> float:
    """The share of values that differ."""
    differ = sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
    return differ / sum(tensor.numel() for tensor in before)


def logprobs(sizes: Sizes, config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Log-probs in chunks against those from all logits, forward and backward."""
    hidden, weight = (
        torch.randn(rows, config["hidden_size"], device=device, dtype=torch.bfloat16).mul_(0.05)
        for rows in (sizes.positions, config["vocab_size"])
    )
    hidden.requires_grad_()
    weight.requires_grad_()
    targets = torch.randint(config["vocab_size"], (sizes.positions,), device=device)

    def ours() -> None:
        token_logprobs(hidden, weight, targets)[0].sum().backward()
        hidden.grad = weight.grad = None

    def theirs() -> None:
        logs = (hidden @ weight.T).float().log_softmax(-1)
        logs.gather(1, targets[:, None]).sum().backward()
        hidden.grad = weight.grad = None

    return compare("logprobs", ours, theirs, sizes.rounds, device)


def attention(sizes: Sizes, config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Packed attention of eight samples against transformers' sdpa with a mask, forward and backward."""
    heads, groups, width = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    layer: Any = nn.Module()
    layer.num_key_value_groups, layer.is_causal = heads // groups, True
    query, key, value = (
        torch.randn(1, count, sizes.row, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        for count in (heads, groups, groups)
    )
    lengths = [sizes.row // 8] * 8
    sample = torch.arange(8, device=device).repeat_interleave(sizes.row // 8)
    mask = (sample[:, None] == sample) & torch.ones_like(sample[:, None] == sample).tril()

    def run(attended: Tensor) -> None:
        attended.sum().backward()
        query.grad = key.grad = value.grad = None

    return compare(
        "packed",
        lambda: run(packed_sdpa(layer, query, key, value, None, lengths)[0]),
        lambda: run(sdpa_attention_forward(layer, query, key, value, mask[None, None])[0]),
        sizes.rounds,
        device,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure."""
    device, sizes = device_here(), TINY if options.tiny else Sizes()
    rate = matrix_rate(sizes, device)
    figures: dict[str, Any] = {
        "card": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "attn_implementation": options.attn_implementation,
        "fused_layers": options.fused_layers,
        "matrix_tflops": rate / 1e12,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.tiny:
            build_tiny("qwen3_vl", folder)
        else:
            build_2b(folder, device)
        settings = ModelConfig(
            name_or_path=place,
            attn_implementation=options.attn_implementation,
            fused_layers=options.fused_layers,
        )
        text = json.loads((folder / "config.json").read_text())["text_config"]
        for lora in (None, LoraConfig(rank=16)):
            figures |= learner(sizes, settings, folder, lora)
    for name in ("full", "lora"):
        figures[f"{name}_mfu"] = figures.pop(f"{name}_tflops") * 1e12 / rate
    return figures | logprobs(sizes, text, device) | attention(sizes, text, device)


def main() -> int:
    """Measure, print and compare."""
    parser = benchmark.parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--attn-implementation", default="sdpa", help="model.attn_implementation")
    parser.add_argument("--fused-layers", default="none", help="model.fused_layers")
    options = parser.parse_args()
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        # torch before 2.13 has it not, and one rank does not need it.
        FSDPModule.set_reduce_scatter_unused_params = lambda *args, **kwargs: None
    return benchmark.report(measure(options), GOALS, options)


if __name__ == "__main__":
    sys.exit(main())
