"""Intervals for accuracies: one checkpoint by itself, and two on the same samples.

Standard library only, so that the terminal table and `posttrain validate` stay quick.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion.

    Unlike p ± 1.96·se it stays within [0, 1] and keeps its coverage near 0 and 1, where a task that
    is learned (or not learned at all) ends up.

    Args:
        successes: How many of the samples were right.
        n: How many samples there were.
        confidence: Coverage wanted, in (0, 1).

    Returns:
        (low, high) as fractions; (0, 1) where n is 0, for nothing is known then.

    Raises:
        ValueError: If the counts contradict each other or the confidence is not in (0, 1).

    Source:
        Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} samples: counts must satisfy 0 <= successes <= n")
    z = _quantile(confidence)
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Rounding must not push the bounds past what was observed at the two ends.
    low = 0.0 if successes == 0 else centre - reach
    high = 1.0 if successes == n else centre + reach
    return low, high


@dataclass(frozen=True)
class PairedComparison:
    """Two checkpoints on the same samples.

    Attributes:
        n: Number of pairs.
        difference: Accuracy after minus accuracy before.
        low, high: Interval of the difference.
        gained: Samples that only `after` got right.
        lost: Samples that only `before` got right.
        p_value: Two-sided probability of a split of gained and lost as uneven as this if the two
            checkpoints were equally good.

    Example:
        PairedComparison(n=400, difference=0.37, low=0.31, high=0.43, gained=160, lost=12, p_value=1e-33)
    """

    n: int
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float


def compare_paired(
    before: Sequence[bool], after: Sequence[bool], confidence: float = 0.95
) -> PairedComparison:
    """Compare two checkpoints sample by sample.

    Only the samples on which they disagree carry information, so this sees smaller differences than
    two intervals side by side do.

    Args:
        before: [n] Whether each sample was right before.
        after: [n] The same samples, in the same order.
        confidence: Coverage of the interval, in (0, 1).

    Raises:
        ValueError: If the lengths differ or there are no pairs.

    Source:
        The interval is Bonett and Price (2012), Adjusted Wald confidence interval for a difference of
        binomial proportions based on paired data; the test is McNemar's (1947), exact.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"pairs need two lists of one length, not {len(before)} and {len(after)} outcomes")
    n = len(before)
    gained = sum(1 for was, now in zip(before, after, strict=True) if now and not was)
    lost = sum(1 for was, now in zip(before, after, strict=True) if was and not now)
    share_gained, share_lost = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    shift = share_gained - share_lost
    reach = _quantile(confidence) * math.sqrt((share_gained + share_lost - shift**2) / (n + 2))
    return PairedComparison(
        n=n,
        difference=(gained - lost) / n,
        low=max(-1.0, shift - reach),
        high=min(1.0, shift + reach),
        gained=gained,
        lost=lost,
        p_value=_sign_test(gained, lost),
    )


def _quantile(confidence: float) -> float:
    """The normal quantile that leaves (1 - confidence) / 2 on either side."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _sign_test(gained: int, lost: int) -> float:
    """The exact two-sided binomial test of an even split."""
    discordant = gained + lost
    tail, ways = 0, 1  # ways = C(discordant, k)
    for k in range(min(gained, lost) + 1):
        tail += ways
        ways = ways * (discordant - k) // (k + 1)
    # Integers until the last division: 2**discordant does not fit a float beyond a thousand pairs.
    return min(1.0, 2 * tail / 2**discordant)
