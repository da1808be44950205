"""The repetition penalty: loops of every kind, and text that only looks like one."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput, text_message
from rewards.builtin.repetition import repetition

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def value(answer: str, **params: float) -> float:
    score = repetition(RewardInput((), (), answer), **params)
    assert score is not None
    return score.value


@given(TEXT)
def test_any_text_is_judged(text: str) -> None:
    assert -1 <= value(text) <= 0
    assert value(f"\n {text} \n") == value(text)


@given(st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=40))
def test_a_long_loop_of_anything_gets_the_minimum(unit: str) -> None:
    assert value(unit * (30_000 // len(unit))) == -1
    assert value(f"{unit} " * (30_000 // len(unit))) == -1


@given(st.integers(0, 1000))
def test_text_of_different_words_is_not_penalised(seed: int) -> None:
    rng = random.Random(seed)
    assert value(" ".join(f"w{rng.randrange(500)}" for _ in range(600))) == 0


@pytest.mark.parametrize("answer", ["", "ha ha ha ha ha", "Yes.\n" * 20])
def test_short_texts_are_left_alone(answer: str) -> None:
    assert value(answer) == 0


def test_more_repetition_is_never_better() -> None:
    story = " ".join(f"word{i}" for i in range(300))
    values = [value(story + " and so on and on it goes" * n) for n in range(0, 200, 10)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 0
    assert values[-1] == -1


def test_the_thinking_counts() -> None:
    loop = text_message("assistant", "<think>" + "Wait, let me check again. " * 100)
    score = repetition(RewardInput((), (loop,), ""))
    assert score is not None
    assert score.value == -1
    assert score.parts.keys() == {"phrases", "lines"}


@pytest.mark.parametrize(("tolerated", "full"), [(0.5, 0.5), (-0.1, 0.5), (0.2, 1.1)])
def test_limits_must_be_in_order(tolerated: float, full: float) -> None:
    with pytest.raises(ValueError, match="tolerated"):
        value("text", tolerated=tolerated, full=full)


@pytest.mark.parametrize(
    "text", ["a" * 10**6, "a " * 500_000, "\n" * 10**6, "! " * 500_000, "汉" * 10**6, "a\n" * 500_000]
)
def test_a_megabyte_takes_linear_time(text: str) -> None:
    start = time.process_time()
    value(text)
    assert time.process_time() - start < 2
