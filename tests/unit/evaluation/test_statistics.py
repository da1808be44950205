import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from posttrain.evaluation.statistics import compare_paired, wilson_interval


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


def test_paired_comparison_counts_only_disagreements():
    before = [True] * 50 + [False] * 50
    after = [True] * 45 + [False] * 5 + [True] * 20 + [False] * 30
    found = compare_paired(before, after)
    assert (found.n, found.gained, found.lost) == (100, 20, 5)
    assert found.difference == pytest.approx(0.15)
    assert found.low < 0.15 < found.high
    assert found.p_value == pytest.approx(binomtest(5, 25).pvalue)


def test_paired_interval_is_bonett_and_prices():
    # Their formula by hand for 7 gained, 1 lost of 30: p12 = 8/32, p21 = 2/32.
    found = compare_paired([False] * 7 + [True] + [True] * 22, [True] * 7 + [False] + [True] * 22)
    reach = 1.959963984540054 * ((8 / 32 + 2 / 32 - (6 / 32) ** 2) / 32) ** 0.5
    assert (found.low, found.high) == pytest.approx((6 / 32 - reach, 6 / 32 + reach))


def test_paired_interval_covers_the_truth():
    rng = random.Random(0)
    trials, covered = 400, 0
    for _ in range(trials):
        before = [rng.random() < 0.4 for _ in range(120)]
        after = [rng.random() < (0.9 if was else 0.3) for was in before]
        found = compare_paired(before, after)
        covered += found.low <= 0.4 * -0.1 + 0.6 * 0.3 <= found.high
    assert 0.92 <= covered / trials <= 0.985


def test_swapping_the_checkpoints_swaps_the_sign():
    rng = random.Random(1)
    before, after = ([rng.random() < share for _ in range(60)] for share in (0.3, 0.6))
    there, back = compare_paired(before, after), compare_paired(after, before)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p_value == pytest.approx(back.p_value)


def test_equal_checkpoints_differ_in_nothing():
    found = compare_paired([True, False], [True, False])
    assert (found.difference, found.p_value) == (0.0, 1.0)


def test_many_pairs_do_not_overflow():
    assert compare_paired([False] * 5000, [True] * 5000).p_value == 0.0
    assert compare_paired([False, True] * 2500, [True, False] * 2500).p_value == 1.0


@pytest.mark.parametrize(("before", "after"), [([], []), ([True], [True, False])])
def test_lists_that_do_not_pair_are_refused(before, after):
    with pytest.raises(ValueError, match="pairs need two lists"):
        compare_paired(before, after)
