import itertools
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.formats import DataError
from posttrain.data.mixing import MAX_PERIOD, PeriodicSchedule, TokenSchedule, schedule, shuffled


def assert_every_prefix_is_fair(order: list[str], shares: dict[str, float]) -> None:
    drawn = Counter[str]()
    for count, name in enumerate(order * 2, start=1):
        drawn[name] += 1
        for other, share in shares.items():
            assert abs(drawn[other] - count * share) < 1 + 1e-9


def test_shares_are_exact():
    assert Counter(schedule({"a": 0.67, "b": 0.33})) == {"a": 67, "b": 33}
    assert Counter(schedule({"a": 1 / 3, "b": 2 / 3})) == {"a": 1, "b": 2}
    assert Counter(schedule({"a": 3, "b": 3.0})) == {"a": 1, "b": 1}
    assert schedule({"a": 0.1}) == ["a"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(1, 3))
def test_every_batch_has_exactly_its_shares_where_they_are_whole(parts: list[int], times: int):
    """Of a batch of `times` × the sum of the parts, as an rl stage draws its prompts."""
    names = [f"task{index}" for index in range(len(parts))]
    size = sum(parts) * times
    drawn = PeriodicSchedule({name: part / sum(parts) for name, part in zip(names, parts, strict=True)})
    for batch in range(5):
        found = Counter(drawn[batch * size + place][0] for place in range(size))
        assert found == {name: part * times for name, part in zip(names, parts, strict=True)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_every_prefix_has_its_shares(parts: list[int]):
    weights = {str(place): part for place, part in enumerate(parts)}
    shares = {name: part / sum(parts) for name, part in weights.items()}
    assert_every_prefix_is_fair(schedule(weights), shares)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=5))
def test_odd_shares_are_within_a_ten_thousandth(weights: list[float]):
    order = schedule({str(place): weight for place, weight in enumerate(weights)})
    assert len(order) <= MAX_PERIOD
    for name, drawn in Counter(order).items():
        share = weights[int(name)] / sum(weights)
        assert abs(Fraction(drawn, len(order)) - share) <= 1.1 / MAX_PERIOD
    assert_every_prefix_is_fair(order, {name: n / len(order) for name, n in Counter(order).items()})


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 1e-9])
def test_weights_that_make_no_share(weight: float):
    with pytest.raises(DataError, match="of b "):
        schedule({"a": 1, "b": weight})


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 1000, 4097])
def test_a_shuffle_is_a_permutation(size: int):
    order = [shuffled(index, size, "key") for index in range(size)]
    assert sorted(order) == list(range(size))


def test_shuffles_differ_by_key_and_look_random():
    size = 2000
    keys = ("0/a/0", "0/a/1", "1/a/0")
    orders = {key: [shuffled(index, size, key) for index in range(size)] for key in keys}
    assert len({tuple(order) for order in orders.values()}) == 3
    for order in orders.values():
        kept = sum(place == row for place, row in enumerate(order))
        neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(order))
        assert kept < 10
        assert neighbours < 15
        assert abs(sum(order[: size // 2]) / (size // 2) - size / 2) < size * 0.05


def test_all_orders_of_a_small_dataset_are_about_as_likely():
    drawn = Counter(tuple(shuffled(index, 4, str(key)) for index in range(4)) for key in range(2400))
    assert len(drawn) == 24
    assert sum((count - 100) ** 2 / 100 for count in drawn.values()) / 23 < 2.5


def test_the_order_never_changes_between_versions():
    assert [shuffled(index, 10, "0/zoom/0") for index in range(10)] == [4, 5, 2, 3, 8, 6, 9, 1, 7, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.lists(st.integers(1, 30_000), min_size=1, max_size=5)),
        min_size=1,
        max_size=5,
    )
)
def test_every_prefix_has_its_shares_of_tokens(parts: list[tuple[int, list[int]]]):
    lengths = {str(place): each for place, (_, each) in enumerate(parts)}
    weights = {str(place): weight for place, (weight, _) in enumerate(parts)}

    def length(name: str, nth: int) -> int:
        return lengths[name][nth % len(lengths[name])]

    draws = TokenSchedule(weights, length)
    tokens, drawn = Counter[str](), Counter[str]()
    for draw in range(300):
        name, nth = draws[draw]
        assert nth == drawn[name]
        drawn[name] += 1
        tokens[name] += length(name, nth)
        for other, weight in weights.items():
            share = Fraction(weight, sum(weights.values())) * tokens.total()
            assert tokens[other] - share < max(lengths[other])
    again = TokenSchedule(dict(reversed(weights.items())), length)
    assert [again[draw] for draw in reversed(range(300))] == [draws[draw] for draw in reversed(range(300))]


def test_shares_of_tokens_are_not_shares_of_samples():
    draws = TokenSchedule({"long": 0.5, "short": 0.5}, lambda name, _: 900 if name == "long" else 100)
    assert Counter(draws[draw][0] for draw in range(1000)) == {"long": 100, "short": 900}
    with pytest.raises(DataError, match="of b "):
        TokenSchedule({"a": 1, "b": 0}, lambda *_: 1)
