"""The curriculum by length: phases, shares in every prefix, epochs; a draw is a function of its number."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.curriculum import CurriculumMixture, LengthPhases
from posttrain.data.formats import DataError
from posttrain.data.mixing import Mixture

SHORT, MOST = 100, 1000
LENGTHS = st.lists(st.integers(1, MOST + 50), min_size=1, max_size=9)


def curriculum(lengths: dict[str, list[int]], begun: int, share: float, **more: Any) -> CurriculumMixture:
    rows: dict[str, Any] = {name: [Path(name)] * len(each) for name, each in lengths.items()}
    weights = {name: 1.0 + place for place, name in enumerate(sorted(lengths))}
    phases = LengthPhases(SHORT, MOST, share, begun)
    return CurriculumMixture(Mixture(rows, weights, seed=0), weights, 0, lengths, phases, **more)


@given(
    st.dictionaries(st.sampled_from("abc"), LENGTHS, min_size=1),
    st.integers(0, 40),
    st.integers(1, 10).map(lambda tenths: tenths / 10),
    st.booleans(),
)
def test_every_prefix_has_its_lengths_and_its_datasets(
    lengths: dict[str, list[int]], begun: int, share: float, by_tokens: bool
) -> None:
    lengths["a"] = [SHORT, SHORT + 1, MOST, *lengths.get("a", [])]  # there are short and long ones
    usable = {name: [n for n in each if n <= MOST] for name, each in lengths.items()}
    if not all(usable.values()):
        with pytest.raises(DataError, match=r"every sample has more tokens than data.max_length = 1000"):
            curriculum(lengths, begun, share)
        return
    mixture = curriculum(lengths, begun, share, by_tokens=by_tokens)
    draws = [mixture.index(draw) for draw in range(160)]
    drawn: dict[bool, list[tuple[str, int]]] = {False: [], True: []}
    long = 0
    for draw, (name, row) in enumerate(draws):
        length = lengths[name][row]
        assert length <= mixture.max_length(draw) <= MOST
        drawn[length > SHORT].append((name, row))
        if draw < begun:
            assert length <= SHORT == mixture.max_length(draw)
            continue
        long += length > SHORT
        assert abs(long - share * (draw + 1 - begun)) < 1 + 1e-9
    for is_long, found in drawn.items():
        check_shares_and_epochs(lengths, found, is_long, by_tokens)
    again = curriculum(dict(reversed(lengths.items())), begun, share, by_tokens=by_tokens)
    assert [again.index(draw) for draw in reversed(range(80, 160))] == draws[:79:-1]


def check_shares_and_epochs(
    lengths: dict[str, list[int]], found: list[tuple[str, int]], is_long: bool, by_tokens: bool
) -> None:
    """Among the datasets that have such rows, the shares of every prefix; and no row twice an epoch."""
    such = {
        name: [row for row, length in enumerate(each) if length <= MOST and (length > SHORT) == is_long]
        for name, each in lengths.items()
    }
    weights = {name: 1.0 + place for place, name in enumerate(sorted(lengths)) if such[name]}
    taken: Counter[str] = Counter()
    for name, row in found:
        taken[name] += lengths[name][row] if by_tokens else 1
        for other, weight in weights.items():
            above = taken[other] - weight / sum(weights.values()) * taken.total()
            assert above < (max(lengths[other][row] for row in such[other]) if by_tokens else 1 + 1e-9)
    for name, rows in such.items():
        own = [row for drawn, row in found if drawn == name]
        for start in range(0, len(own) - len(rows) + 1, max(1, len(rows))):
            assert sorted(own[start : start + len(rows)]) == rows


@pytest.mark.parametrize(("lengths", "message"), [([5, 100], "no"), ([101], "every")])
def test_a_curriculum_needs_short_and_long_samples(lengths: list[int], message: str) -> None:
    with pytest.raises(
        DataError, match=f"{message} sample has more tokens than data.curriculum.short_length"
    ):
        curriculum({"a": lengths}, 0, 0.5)
