"""Truncation and the overlong penalty."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput, text_message
from rewards.builtin.length import overlong, truncation, written


def value(length: int, limit: int, soft: int = 0) -> float:
    score = overlong(RewardInput((), (), "x" * length), limit=limit, soft=soft)
    assert score is not None
    return score.value


@given(st.integers(0, 300), st.integers(1, 200), st.integers(0, 200))
def test_it_is_dapos_equation_13(length: int, limit: int, soft: int) -> None:
    soft = min(soft, limit)
    if length <= limit - soft:
        expected = 0.0
    elif length <= limit:
        expected = ((limit - soft) - length) / soft
    else:
        expected = -1.0
    assert value(length, limit, soft) == expected
    assert value(length + 1, limit, soft) <= expected


def test_white_space_around_an_answer_does_not_count() -> None:
    score = overlong(RewardInput((), (), f"\n {'x' * 10} \n"), limit=10)
    assert score is not None
    assert score.value == 0


def test_the_thinking_and_earlier_turns_count_but_not_observations() -> None:
    turns = (
        text_message("assistant", "<think>abc</think>"),
        text_message("tool", "long " * 100),
        text_message("assistant", "done"),
    )
    x = RewardInput((), turns, "done")
    assert written(x) == "<think>abc</think>\ndone"
    score = overlong(x, limit=22)
    assert score is not None
    assert score.value == -1


@pytest.mark.parametrize(("limit", "soft"), [(0, 0), (10, 11), (10, -1)])
def test_limits_must_make_sense(limit: int, soft: int) -> None:
    with pytest.raises(ValueError, match="overlong"):
        value(5, limit, soft)


def test_truncation() -> None:
    for answer in ("", "text"):
        for truncated in (False, True):
            score = truncation(RewardInput((), (), answer, truncated=truncated))
            assert score is not None
            assert score.value == -float(truncated)
