"""Log-probs of sampled tokens in chunks against those from all logits: memory and time, part (e)."""

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from live_bytes import LiveBytes
from torch import Tensor, nn
from tqdm import tqdm

from posttrain.models.logprobs import token_logprobs

#: Qwen3-VL's vocabulary; tokens of a long row; and a width at which a turn takes seconds.
VOCABULARY, TOKENS, WIDTH = 151_936, 8192, 512
GIB = 2**30
#: Tensors as large as all logits that live at once: their log-softmax, and the gradients of both. And what
#: else the machine should have free, in bytes.
COPIES, MARGIN = 3, 2 * GIB
#: Tokens by which both sides are compared, and warmed up, before the clock starts.
COMPARED = 128


def logprobs() -> dict[str, Any]:
    """Return ratios of memory and time; nothing if the machine has no room for all logits.

    Each side has one turn, of half a minute on two cores: it computes for so long that it varies little.
    """
    needed = COPIES * 4 * VOCABULARY * TOKENS + MARGIN
    free = psutil.virtual_memory().available
    if free < needed:
        print(
            f"part e is left out: all logits take {needed / GIB:.0f} GiB, and {free / GIB:.0f} are free",
            file=sys.stderr,
        )
        return {}
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH).mul_(0.05).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH).mul_(0.05).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,))

    def ours(tokens: int = TOKENS) -> Tensor:
        return token_logprobs(hidden[:tokens], weight, targets[:tokens])[0]

    def theirs(tokens: int = TOKENS) -> Tensor:
        return -nn.functional.cross_entropy(hidden[:tokens] @ weight.T, targets[:tokens], reduction="none")

    torch.testing.assert_close(ours(COMPARED).detach(), theirs(COMPARED).detach(), rtol=1e-4, atol=1e-4)
    sides = tqdm((ours, theirs), desc="e", unit="side")
    (seconds, peak), (seconds_of_all, peak_of_all) = (
        forward_and_backward(side, (hidden, weight)) for side in sides
    )
    return {
        "logprobs_memory_ratio": peak / peak_of_all,
        "logprobs_time_ratio": seconds / seconds_of_all,
        "logprobs_gib": peak / GIB,
        "logprobs_all_logits_gib": peak_of_all / GIB,
        "logprobs_s": seconds,
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
