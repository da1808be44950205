"""Figures of tokens: every character of a turn is counted once, for the token that ends it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.run.token_figures import (
    TurnFigures,
    character_counts,
    read_token_figures,
    token_figures_of,
    write_token_figures,
)


@given(st.text(max_size=40), st.data())
def test_counts_are_of_the_characters_that_end_in_each_token(text: str, data: st.DataObject) -> None:
    text = text.encode("utf-8", "ignore").decode()
    written = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    sizes = np.diff([0, *cuts, len(written)])
    counts = character_counts(text, sizes)
    assert counts is not None
    ends = np.cumsum([len(letter.encode()) for letter in text])
    edges = np.cumsum(sizes)
    told = [sum(low < end <= high for end in ends) for low, high in zip([0, *edges], edges, strict=False)]
    assert counts.tolist() == told


def test_sizes_that_are_not_the_texts_are_told() -> None:
    assert character_counts("abc", np.array([1, 1])) is None
    assert character_counts("", np.array([], int)) is not None


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = tmp_path / "step-1.jsonl"
    turns = [
        TurnFigures(
            0,
            np.array([2, 1], np.uint16),
            np.array([-0.5, -2], np.float16),
            np.array([2, np.nan], np.float16),
        ),
        TurnFigures(0, np.zeros(0, np.uint16), *[np.zeros(0, np.float16)] * 2),
        TurnFigures(3, np.array([7], np.uint16), np.array([-1], np.float16), np.array([0.5], np.float16)),
    ]
    write_token_figures(rows, turns)
    read = read_token_figures(rows)
    assert [(turn.row, turn.lengths.tolist(), turn.logprobs.tolist()) for turn in read] == [
        (0, [2, 1], [-0.5, -2]),
        (0, [], []),
        (3, [7], [-1]),
    ]
    assert [str(turn.entropies.tolist()) for turn in read] == ["[2.0, nan]", "[]", "[0.5]"]


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut off"])
def test_damaged_figures_are_none(tmp_path: Path, content: bytes | None) -> None:
    rows = tmp_path / "step-1.jsonl"
    if content is not None:
        token_figures_of(rows).write_bytes(content)
    assert read_token_figures(rows) == []


def test_an_array_of_objects_is_not_loaded(tmp_path: Path) -> None:
    rows = tmp_path / "step-1.jsonl"
    names = ("rows", "counts", "lengths", "logprobs", "entropies")
    np.savez(token_figures_of(rows), **{name: np.array([print]) for name in names}, allow_pickle=True)
    assert read_token_figures(rows) == []
