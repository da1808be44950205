"""Log-probs of sampled tokens in chunks against those from all logits: memory and time, part (e)."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from live_bytes import LiveBytes
from torch import Tensor, nn

from posttrain.models.logprobs import token_logprobs

#: Qwen3-VL's vocabulary; tokens of a long row; and a width at which a turn takes seconds.
VOCABULARY, TOKENS, WIDTH = 151_936, 8192, 512
GIB = 2**30
#: Tensors as large as all logits that live at once: their log-softmax, and the gradients of both. And what
#: else the machine should have free, in bytes.
COPIES, MARGIN = 3, 2 * GIB


def logprobs(rounds: int) -> dict[str, Any]:
    """Return ratios of memory and time, in turns.

    Args:
        rounds: Turns of each side.

    Raises:
        SystemExit: If the machine has no room for all logits.
    """
    needed = COPIES * 4 * VOCABULARY * TOKENS + MARGIN
    free = psutil.virtual_memory().available
    if free < needed:
        raise SystemExit(f"all logits take {needed / GIB:.0f} GiB, and {free / GIB:.0f} GiB are free")
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH).mul_(0.05).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH).mul_(0.05).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,))

    def ours() -> Tensor:
        return token_logprobs(hidden, weight, targets)[0]

    def theirs() -> Tensor:
        return -nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")

    torch.testing.assert_close(ours().detach(), theirs().detach(), rtol=1e-4, atol=1e-4)
    found: dict[str, list[tuple[float, int]]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for name, work in (("ours", ours), ("theirs", theirs)):
            found[name].append(forward_and_backward(work, (hidden, weight)))
    times = [mine[0] / other[0] for mine, other in zip(found["ours"], found["theirs"], strict=True)]
    peak, peak_of_all = (max(peak for _, peak in found[name]) for name in ("ours", "theirs"))
    return {
        "logprobs_memory_ratio": peak / peak_of_all,
        "logprobs_time_ratio": statistics.median(times),
        "logprobs_time_ratio_spread": [min(times), max(times)],
        "logprobs_gib": peak / GIB,
        "logprobs_all_logits_gib": peak_of_all / GIB,
        "logprobs_s": statistics.median(seconds for seconds, _ in found["ours"]),
    }


def forward_and_backward(work: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> tuple[float, int]:
    """Return the seconds of a forward and backward pass, and the bytes of tensors beyond its inputs."""
    gc.collect()
    with LiveBytes() as live:
        live.add(*inputs)
        before = live.now
        begun = time.perf_counter()
        work().sum().backward()
        taken = time.perf_counter() - begun
        peak = live.peak - before
    for tensor in inputs:
        tensor.grad = None
    return taken, peak
