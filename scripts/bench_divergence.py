"""The memory of a divergence over the whole vocabulary, forward and backward, beside that of full logits.

    python scripts/bench_divergence.py  # 8,192 tokens, a vocabulary of 151,936
    python scripts/bench_divergence.py --check    # fail above an eighth of both models' logits

The bytes are those of tensors that live at once beside inputs and gradients, whatever the device. Widths of
hidden states are small here: they change the time, and of the memory only what any loss needs.
"""

import sys
import time

import torch
from benchmark import parser, report
from live_bytes import LiveBytes

from posttrain.models.divergences import generalized_jsd

GOALS = {"share_of_both_logits": ("<=", 1 / 8)}


def main() -> int:
    """Measure one forward and backward pass."""
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=8192)
    options.add_argument("--vocabulary", type=int, default=151_936)
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--beta", type=float, default=0.5)
    chosen = options.parse_args()
    made = torch.Generator().manual_seed(0)
    hidden, head, teacher, teacher_head = (
        torch.randn(rows, chosen.width, generator=made) for rows in (chosen.tokens, chosen.vocabulary) * 2
    )
    hidden.requires_grad_()
    head.requires_grad_()
    begun = time.perf_counter()
    with LiveBytes() as live:
        live.add(hidden, head, teacher, teacher_head)
        held = live.now
        generalized_jsd(hidden, head, teacher, teacher_head, chosen.beta).mean().backward()
        peak = live.peak - held
    assert hidden.grad is not None
    assert head.grad is not None
    gradients = hidden.grad.nbytes + head.grad.nbytes
    logits = 2 * 4 * chosen.tokens * chosen.vocabulary
    figures = {
        "divergence_mib": (peak - gradients) / 2**20,
        "logits_of_both_mib": logits / 2**20,
        "share_of_both_logits": (peak - gradients) / logits,
        "seconds": time.perf_counter() - begun,
    }
    return report(figures, GOALS, chosen)


if __name__ == "__main__":
    sys.exit(main())
