"""Two models on the same prompts: tests and intervals against published figures and plain enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from posttrain.evaluation.resampling import sign_flip_p
from posttrain.evaluation.statistics import mcnemar_exact, paired_difference_interval


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_sign_test_of_the_prompts_that_changed(gained: int, lost: int):
    expected = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert math.isclose(mcnemar_exact(gained, lost), expected, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("table", "interval"),
    [  # Newcombe (1998), table III, method 10
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((1, 97, 1, 1), (0.8737, 0.9850)),
    ],
)
def test_paired_intervals_are_those_of_the_source(
    table: tuple[int, int, int, int], interval: tuple[float, float]
):
    assert paired_difference_interval(*table) == pytest.approx(interval, abs=2e-4)


@given(st.tuples(*[st.integers(0, 30)] * 4))
def test_paired_intervals_hold_the_difference_and_turn_with_the_order(table: tuple[int, int, int, int]):
    both, gained, lost, neither = table
    n = sum(table)
    low, high = paired_difference_interval(both, gained, lost, neither)
    assert -1 <= low <= (gained - lost) / max(1, n) + 1e-12
    assert (gained - lost) / max(1, n) - 1e-12 <= high <= 1
    turned = paired_difference_interval(both, lost, gained, neither)
    assert turned == pytest.approx((-high, -low), abs=1e-12)


def test_flipping_signs_at_random_comes_to_what_flipping_all_does():
    differences = np.array([0.5, 0.25, -0.125, 0.75, 0.0, 0.5, -0.25, 0.125])
    moved = differences[differences != 0]
    sums = [abs((np.array(signs) * moved).sum()) for signs in itertools.product((-1, 1), repeat=len(moved))]
    exact = np.mean([total >= abs(moved.sum()) - 1e-12 for total in sums])
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(np.zeros(5)) == 1.0
    pairs = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 20)
    assert sign_flip_p(pairs) == pytest.approx(mcnemar_exact(9, 2), abs=0.01)
