"""Intervals and p-values by resampling prompts: for figures that no closed form covers.

The prompt is the unit: several answers to one prompt are alike, and so are the answers of two models to it.
What is drawn depends on nothing but the number of prompts, so figures repeat.
"""

import numpy as np

RESAMPLES = 10_000
#: Numbers held at once while resampling.
_AT_ONCE = 4_000_000
_SEED = 20_210_707


def bootstrap_intervals(values: np.ndarray, confidence: float = 0.95) -> list[tuple[float, float]]:
    """Compute percentile intervals of means over prompts, by drawing prompts with replacement.

    Args:
        values: [prompts, figures], what each prompt says of each figure, such as its share of right answers.
        confidence: Coverage wanted, in (0, 1).

    Returns:
        (low, high) of each figure. Where all prompts say the same it has no width, which is no certainty.

    Source:
        Efron (1979), Bootstrap methods: another look at the jackknife; whole prompts are drawn, since answers
        to one prompt are not independent.
    """
    n = len(values)
    rng = np.random.default_rng(_SEED)
    rows = max(1, _AT_ONCE // n)
    counts = (
        rng.multinomial(n, np.full(n, 1 / n), size=min(rows, RESAMPLES - start))
        for start in range(0, RESAMPLES, rows)
    )
    means = np.concatenate([drawn @ values / n for drawn in counts])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def sign_flip_p(differences: np.ndarray) -> float:
    """Compute a two-sided p-value for a mean of paired differences, by flipping their signs at random.

    If two models are alike, either could have given either answer. With one answer a prompt this is McNemar's
    exact test, but for the noise of the draws.

    Args:
        differences: [prompts], second minus first.

    Source:
        Fisher (1935), The design of experiments, section 21; with the observed one counted among the draws.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    rng = np.random.default_rng(_SEED)
    rows = max(1, _AT_ONCE // len(moved))
    reached, observed = 0, abs(moved.sum()) - 1e-9
    for start in range(0, RESAMPLES, rows):
        signs = rng.integers(0, 2, (min(rows, RESAMPLES - start), len(moved))) * 2 - 1
        reached += int((np.abs(signs @ moved) >= observed).sum())
    return (reached + 1) / (RESAMPLES + 1)
