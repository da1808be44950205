"""Shares of right answers with their intervals, where every prompt may have several answers."""

from collections.abc import Mapping, Sequence

import numpy as np

from posttrain.evaluation.difficulty import bins_in_order
from posttrain.evaluation.resampling import bootstrap_intervals
from posttrain.evaluation.statistics import pass_at_k, wilson_interval
from posttrain.run.estimates import Estimate


def mean_share(right: Sequence[int], answers: int) -> Estimate:
    """Return the share of right answers: mean@k.

    The interval has prompts as its unit: Wilson's for one answer a prompt, else a bootstrap of prompts.

    Args:
        right: Right answers of each prompt.
        answers: Answers to each prompt.
    """
    if answers == 1 or not right:
        low, high = wilson_interval(sum(right), len(right))
        return Estimate(sum(right) / max(1, len(right)), low, high, len(right))
    return _estimates(np.array(right, dtype=float)[:, None] / answers)[0]


def pass_shares(right: Sequence[int], answers: int) -> dict[str, Estimate]:
    """Return pass@k by k: of the powers of two above 1 up to the answers of a prompt, and of all answers.

    Args:
        right: Right answers of each prompt.
        answers: Answers to each prompt.
    """
    ks = sorted({2**power for power in range(1, answers.bit_length())} | {answers})
    ks = [k for k in ks if 1 < k <= answers]
    if not ks or not right:
        return {}
    values = np.array([[pass_at_k(count, answers, k) for k in ks] for count in right])
    return {str(k): estimate for k, estimate in zip(ks, _estimates(values), strict=True)}


def shares_by_bin(
    right: Sequence[int], answers: int, bins: Sequence[str | None], values: Sequence[object]
) -> dict[str, Estimate]:
    """Return the share of right answers in each bin of prompts; nothing where all prompts are in one.

    Args:
        right: Right answers of each prompt.
        answers: Answers to each prompt.
        bins: The bin of each prompt; None where it is in none.
        values: What each bin was made from, which tells their order.
    """
    members: Mapping[str, list[int]] = {name: [] for name in bins_in_order(bins, values)}
    for count, name in zip(right, bins, strict=True):
        if name is not None:
            members[name].append(count)
    if len(members) < 2:
        return {}
    return {name: mean_share(counts, answers) for name, counts in members.items()}


def _estimates(values: np.ndarray) -> list[Estimate]:
    """Return the mean of each column over the prompts.

    Where all prompts say the same, a bootstrap has no width; Wilson's interval of as many prompts has.
    """
    n, found = len(values), []
    for mean, (low, high) in zip(values.mean(axis=0), bootstrap_intervals(values), strict=True):
        if high - low < 1e-9:
            low, high = wilson_interval(round(float(mean) * n), n)
        found.append(Estimate(float(mean), low, high, n))
    return found
