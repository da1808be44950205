"""Intervals for accuracies.

Standard library only, so that the terminal table and `posttrain validate` stay quick.
"""

import math
from statistics import NormalDist


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval for a proportion.

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


def _quantile(confidence: float) -> float:
    """Return the normal quantile that leaves (1 - confidence) / 2 on either side."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)
