from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, spearmanr

from posttrain.evaluation.statistics import rank_correlation, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 50), (33, 100), (280, 400), (9_999, 10_000)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_is_scipys(successes, n, confidence):
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_what_was_observed_and_stays_in_range(counts):
    successes, n = counts
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize("truth", [0.05, 0.125, 0.33, 0.7, 0.95])
def test_wilson_covers_the_truth_about_as_often_as_it_says(truth):
    n = 256
    intervals = (wilson_interval(k, n) for k in range(n + 1))
    covered = sum(binom.pmf(k, n, truth) for k, (low, high) in enumerate(intervals) if low <= truth <= high)
    assert covered == pytest.approx(0.95, abs=0.02)


def test_nothing_measured_is_nothing_known():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("successes", "n", "confidence"), [(2, 1, 0.95), (-1, 3, 0.95), (0, -1, 0.95), (1, 2, 1.0)]
)
def test_impossible_counts_are_refused(successes, n, confidence):
    with pytest.raises(ValueError, match=r"must satisfy|between 0 and 1"):
        wilson_interval(successes, n, confidence)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=40))
def test_a_rank_correlation_is_scipys(pairs):
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    found = rank_correlation(first, second)
    if len(set(first)) < 2 or len(set(second)) < 2:
        assert found is None
    else:
        expected: Any = spearmanr(first, second)
        assert found == pytest.approx(expected.statistic, abs=1e-9)
