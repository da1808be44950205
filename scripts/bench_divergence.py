"""The memory of divergences from a teacher, forward and backward, beside that of full logits of both models.

    python scripts/bench_divergence.py  # 8,192 tokens, a vocabulary of 151,936
    python scripts/bench_divergence.py --check    # fail above an eighth of both models' logits

Over the whole vocabulary, as of a teacher in learners, and over the 64 likeliest tokens of one in engines.
The bytes are those of tensors that live at once beside inputs and gradients, whatever the device. Widths of
hidden states are small here: they change the time, and of the memory only what any loss needs.
"""

import sys
import time
from collections.abc import Callable, Sequence

import torch
from benchmark import parser, report
from live_bytes import LiveBytes
from torch import Tensor

from posttrain.models.divergences import CHUNK, generalized_jsd
from posttrain.models.logprobs import candidate_logprobs
from posttrain.objectives.distill import TopLogprobs, top_k_jsd

#: Bytes and seconds.
Measured = tuple[int, float]

GOALS = {"share_of_both_logits": ("<=", 1 / 8), "top_k_share_of_both_logits": ("<=", 1 / 8)}


def measure(
    hidden: Tensor, head: Tensor, held: Sequence[Tensor], divergence: Callable[[], Tensor]
) -> Measured:
    """Measure one forward and backward pass.

    Args:
        hidden: The student's states.
        head: Its head.
        held: What is there besides.
        divergence: Computes the divergences.

    Returns:
        The most bytes at once beside inputs and gradients, and seconds.
    """
    hidden.grad = head.grad = None
    begun = time.perf_counter()
    with LiveBytes() as live:
        live.add(hidden, head, *held)
        before = live.now
        divergence().mean().backward()
        peak = live.peak - before
    assert hidden.grad is not None
    assert head.grad is not None
    return peak - hidden.grad.nbytes - head.grad.nbytes, time.perf_counter() - begun


def main() -> int:
    """Measure both kinds."""
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=8192)
    options.add_argument("--vocabulary", type=int, default=151_936)
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--top-k", type=int, default=64)
    options.add_argument("--beta", type=float, default=0.5)
    chosen = options.parse_args()
    made = torch.Generator().manual_seed(0)
    hidden, head, teacher, teacher_head = (
        torch.randn(rows, chosen.width, generator=made) for rows in (chosen.tokens, chosen.vocabulary) * 2
    )
    hidden.requires_grad_()
    head.requires_grad_()
    whole = (teacher, teacher_head)
    full, seconds = measure(hidden, head, whole, lambda: generalized_jsd(hidden, head, *whole, chosen.beta))
    ids = torch.randint(chosen.vocabulary, (chosen.tokens, chosen.top_k), generator=made)
    told = (torch.rand(chosen.tokens, chosen.top_k, generator=made) - 9).log_softmax(1) - 0.1

    def over_likeliest() -> Tensor:
        _, student, rest = candidate_logprobs(hidden, head, ids[:, 0], ids, CHUNK)
        return top_k_jsd(TopLogprobs(told, student, rest), chosen.beta)

    few, seconds_of_few = measure(hidden, head, (ids, told), over_likeliest)
    logits = 2 * 4 * chosen.tokens * chosen.vocabulary
    figures = {
        "divergence_mib": full / 2**20,
        "top_k_mib": few / 2**20,
        "logits_of_both_mib": logits / 2**20,
        "share_of_both_logits": full / logits,
        "top_k_share_of_both_logits": few / logits,
        "seconds": seconds,
        "top_k_seconds": seconds_of_few,
    }
    return report(figures, GOALS, chosen)


if __name__ == "__main__":
    sys.exit(main())
