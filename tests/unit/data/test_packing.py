"""Packing: its invariants on random lengths, and how good it is beside the bounds."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.packing import pack


def loads(lengths: list[int], shares: list[list[list[int]]]) -> list[list[int]]:
    return [[sum(lengths[i] for i in row) for row in share] for share in shares]


@given(st.data(), st.integers(1, 8), st.integers(1, 12), st.integers(1, 500))
def test_every_sample_once_no_row_too_long_or_empty(data, ranks, per_rank, capacity):
    count = ranks * per_rank
    lengths = data.draw(st.lists(st.integers(1, capacity), min_size=count, max_size=count))
    shares = pack(lengths, capacity, ranks)
    assert sorted(i for share in shares for row in share for i in row) == list(range(count))
    assert len({len(share) for share in shares}) == 1
    assert len(shares) == ranks
    assert all(0 < load <= capacity for share in loads(lengths, shares) for load in share)


def test_is_the_same_every_time_and_keeps_the_order_within_a_row():
    rng = random.Random(0)
    lengths = [rng.randint(1, 300) for _ in range(64)]
    shares = pack(lengths, 1000, 4)
    assert shares == pack(list(lengths), 1000, 4)
    assert all(row == sorted(row) for share in shares for row in share)


def test_example():
    assert pack([900, 100, 600, 400], capacity=1000) == [[[0, 1], [2, 3]]]


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_rows_and_balance_are_close_to_the_best_possible(ranks):
    rows, least, spread = 0, 0, []
    for seed in range(50):
        rng = random.Random(seed)
        lengths = [min(4096, int(rng.lognormvariate(6, 1)) + 16) for _ in range(32 * ranks)]
        shares = pack(lengths, 4096, ranks)
        rows += sum(map(len, shares))
        least += ranks * math.ceil(sum(lengths) / 4096 / ranks)
        totals = [sum(row) for row in loads(lengths, shares)]
        spread.append(max(totals) / (sum(totals) / ranks))
    assert rows <= 1.15 * least
    assert sum(spread) / len(spread) < 1.01
    assert max(spread) < 1.05


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="11 tokens does not fit a row of 10"):
        pack([1, 11], 10)
    with pytest.raises(ValueError, match="3 samples cannot be shared by 2 ranks"):
        pack([1, 1, 1], 10, 2)
    with pytest.raises(ValueError, match="0 samples"):
        pack([], 10)
