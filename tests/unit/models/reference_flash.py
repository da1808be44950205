"""FlashAttention's functions, written in PyTorch: what a GPU's kernels compute, in float32 on a CPU."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass
class Flash:
    """What the functions were called with.

    Attributes:
        places: For each call with samples of several lengths, where they begin, and the end of the last.
        longest: The longest sample of each such call, as it was told.
        whole: Number of calls with whole batches.
    """

    places: list[Tensor] = field(default_factory=list)
    longest: list[object] = field(default_factory=list)
    whole: int = 0

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        self.whole += 1
        return attention(q, k, v, softmax_scale, causal)

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Attend within each sample; q, k and v are [T, heads, width]."""
        self.places.append(cu_seqlens_q)
        self.longest.append(max_seqlen_q)
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        ends = cu_seqlens_q.tolist()
        assert (ends[0], ends[-1]) == (0, len(q))
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert max_seqlen_q == max_seqlen_k == max(cu_seqlens_q.diff())
        pieces = [slice(start, end) for start, end in pairwise(ends)]
        samples = [(q[piece][None], k[piece][None], v[piece][None]) for piece in pieces]
        return torch.cat([attention(*sample, softmax_scale, causal)[0] for sample in samples])


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
    """Compute attention of [B, T, heads, width], as FlashAttention lays it out."""
    q, k, v = (states.transpose(1, 2) for states in (q, k, v))
    found = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)
    return found.transpose(1, 2)
