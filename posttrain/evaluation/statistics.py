"""Intervals for accuracies and their differences, and the chance that one of several answers is right.

Standard library only, so that the terminal table and `posttrain validate` stay quick.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import NormalDist, correlation


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


def pass_at_k(right: int, n: int, k: int) -> float:
    """Compute the chance that one of k answers to a prompt is right, without bias, from n ≥ k answers.

    It is the share of the subsets of k answers that hold a right one.

    Args:
        right: How many of the answers were right.
        n: How many answers there were.
        k: How many are taken.

    Raises:
        ValueError: If the counts contradict each other.

    Source:
        Chen et al. (2021), Evaluating large language models trained on code (arXiv 2107.03374), equation 1.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {right} right answers among {n}")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Compute McNemar's exact two-sided p-value for two models that answered the same prompts once each.

    Prompts that both got right, or both wrong, say nothing of which is better; of the others, each model
    wins half if they are alike.

    Args:
        gained: Prompts that only the second got right.
        lost: Prompts that only the first got right.

    Source:
        McNemar (1947), Note on the sampling error of the difference between correlated proportions.
    """
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_difference_interval(
    both: int, gained: int, lost: int, neither: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Compute an interval for the difference of two accuracies on the same prompts, second minus first.

    Args:
        both: Prompts that both got right.
        gained: Prompts that only the second got right.
        lost: Prompts that only the first got right.
        neither: Prompts that both got wrong.
        confidence: Coverage wanted, in (0, 1).

    Returns:
        (low, high); (-1, 1) where there are no prompts.

    Source:
        Newcombe (1998), Improved confidence intervals for the difference between binomial proportions based
        on paired data, method 10: Wilson's intervals, joined with the correlation of the pairs.
    """
    n = both + gained + lost + neither
    if n == 0:
        return -1.0, 1.0
    first, second = (both + lost) / n, (both + gained) / n
    (low1, high1), (low2, high2) = (
        wilson_interval(both + lost, n, confidence),
        wilson_interval(both + gained, n, confidence),
    )
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    cross = both * neither - gained * lost
    if cross > 0:  # corrected for continuity, as the source has it
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    difference = second - first
    low = difference - reach(second - low2, high1 - first)
    high = difference + reach(high2 - second, first - low1)
    return max(-1.0, low), min(1.0, high)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Compute Spearman's rank correlation, equal values sharing their mean rank.

    Returns:
        From -1 to 1; None where either has no two values that differ.

    Source:
        Spearman (1904), The proof and measurement of association between two things.
    """
    ranks = [_ranks(values) for values in (first, second)]
    if any(len(set(each)) < 2 for each in ranks):
        return None
    return max(-1.0, min(1.0, correlation(*ranks)))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value from 1 up, the mean one where several are equal."""
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value) + 1) / 2 for value in values]


def _quantile(confidence: float) -> float:
    """Return the normal quantile that leaves (1 - confidence) / 2 on either side."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)
