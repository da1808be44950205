"""The supervised loss, with three ways to weigh long answers against short ones."""

from typing import Literal

import torch
from torch import Tensor

from posttrain.objectives.packed import sequence_lengths

Normalization = Literal["sqrt", "token", "sample"]

#: Exponent a of the token weight 1/Tᵢᵃ.
EXPONENTS: dict[Normalization, float] = {"token": 0.0, "sqrt": 0.5, "sample": 1.0}


def sft_loss(
    logprobs: Tensor,
    sequence_ids: Tensor,
    normalizer: Tensor | float,
    normalization: Normalization = "sqrt",
) -> Tensor:
    """Compute this piece's share of the supervised loss.

    With Tᵢ the number of supervised tokens of sample i, and a = 0 for `token`, ½ for `sqrt`, 1 for `sample`::

        L = Σᵢ Σₜ (−log πᵢₜ / Tᵢᵃ) / Z,   Z = Σᵢ Tᵢ¹⁻ᵃ

    So `token` is the mean over all tokens, `sample` the mean over the samples of each sample's mean, and
    `sqrt` lies between the two: a sample's weight grows with the square root of its length.

    Args:
        logprobs: [T] log-probs of the supervised tokens, with gradient.
        sequence_ids: [T] the sample of each token.
        normalizer: Z over the global batch: the sum of `sft_normalizer` over its pieces.
        normalization: How samples of different lengths are weighed.

    Returns:
        The scalar share.

    Source:
        The Qwen3-VL report names a "square-root-normalised per-token loss" and gives no formula; the
        one for `sqrt` is our reading (assumed).
    """
    lengths = sequence_lengths(sequence_ids)[sequence_ids].to(logprobs.dtype)
    return -(logprobs / lengths ** EXPONENTS[normalization]).sum() / normalizer


def sft_normalizer(lengths: Tensor, normalization: Normalization = "sqrt") -> Tensor:
    """Compute this piece's share of Z = Σᵢ Tᵢ¹⁻ᵃ; the shares of micro-batches and ranks add up.

    Args:
        lengths: [S] number of supervised tokens of each sample; a sample without any does not count.
        normalization: As in `sft_loss`.

    Returns:
        A float64 scalar, in which a count of tokens is exact.
    """
    supervised = lengths[lengths > 0].to(torch.float64)
    return (supervised ** (1 - EXPONENTS[normalization])).sum()
