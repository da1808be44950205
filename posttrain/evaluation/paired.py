"""Two models on the same prompts: the difference of their accuracies, and what chance makes of it."""

from dataclasses import dataclass

import numpy as np

from posttrain.evaluation.outcomes import Outcomes, check_same_prompts
from posttrain.evaluation.resampling import bootstrap_intervals, sign_flip_p
from posttrain.evaluation.statistics import mcnemar_exact, paired_difference_interval


@dataclass(frozen=True)
class Paired:
    """A comparison.

    Attributes:
        n: Number of prompts.
        first, second: Accuracies.
        low, high: 95 % interval of second minus first.
        p: How often chance alone would make as large a difference.
        gained, lost: Ids of the prompts that the second does better on, and worse.
        single: Whether each model gave one answer a prompt.
    """

    n: int
    first: float
    second: float
    low: float
    high: float
    p: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    single: bool

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first


def compare(first: Outcomes, second: Outcomes) -> Paired:
    """Compare two models prompt by prompt.

    With one answer a prompt by McNemar's exact test and Newcombe's interval, else by flipping signs at random
    and a bootstrap of prompts.

    Raises:
        OutcomesError: If the prompts differ.
    """
    check_same_prompts(first, second)
    shares = np.array([[first[name].share, second[name].share] for name in first])
    differences = shares[:, 1] - shares[:, 0]
    gained = tuple(name for name, change in zip(first, differences, strict=True) if change > 1e-9)
    lost = tuple(name for name, change in zip(first, differences, strict=True) if change < -1e-9)
    single = all(len(each[name].answers) == 1 for each in (first, second) for name in first)
    if single:
        both = int((shares.min(axis=1) == 1).sum())
        neither = len(shares) - both - len(gained) - len(lost)
        low, high = paired_difference_interval(both, len(gained), len(lost), neither)
        p = mcnemar_exact(len(gained), len(lost))
    else:
        ((low, high),) = bootstrap_intervals(differences[:, None])
        p = sign_flip_p(differences)
    means = shares.mean(axis=0)
    return Paired(len(shares), float(means[0]), float(means[1]), low, high, p, gained, lost, single)
