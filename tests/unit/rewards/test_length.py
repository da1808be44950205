"""Truncation, the overlong penalty and the cosine of the length."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards.accuracy_rewards import get_cosine_scaled_reward
from trl.rewards.other_rewards import get_soft_overlong_punishment

from posttrain.types import RewardInput, text_message
from rewards.builtin.length import cosine_length, overlong, truncation, written
from rewards.sdk import Reward, RewardError


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


TOKENS = st.integers(0, 300).map(lambda count: tuple(range(count)))


def said(text: str, ids: tuple[int, ...] = (), gold: str | None = "4") -> RewardInput:
    return RewardInput((), (text_message("assistant", text),), text, gold, completion_ids=ids)


@given(TOKENS, st.integers(1, 200), st.integers(0, 200))
def test_in_tokens_it_is_trls(ids: tuple[int, ...], limit: int, soft: int) -> None:
    soft = min(soft, limit)
    score = overlong(said("x" * bool(ids), ids), limit=limit, soft=soft, unit="tokens")
    assert score is not None
    assert [score.value] == get_soft_overlong_punishment(limit, soft)([list(ids)])


PAIR = st.tuples(st.floats(-1, 1), st.floats(-1, 1))


@given(TOKENS, st.integers(1, 400), PAIR, PAIR, st.booleans())
def test_the_cosine_is_trls(
    ids: tuple[int, ...], limit: int, right: tuple[float, float], wrong: tuple[float, float], is_right: bool
) -> None:
    answer = r"\boxed{4}" if is_right else r"\boxed{5}"
    ids = ids or (0,)
    reference = get_cosine_scaled_reward(limit, wrong[0], wrong[1], right[1], right[0])
    (value,) = reference([[{"role": "assistant", "content": answer}]], ["4"], [list(ids)])
    score = cosine_length(said(answer, ids), limit=limit, right=right, wrong=wrong)
    assert score is not None
    assert score.value == pytest.approx(value, abs=1e-15)
    assert score.note == f"{'right' if is_right else 'wrong'}, {len(ids)} tokens, limit {limit}"


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 400))
def test_shorter_is_better_where_right_and_worse_where_wrong(first: int, second: int, limit: int) -> None:
    short, long = sorted((first, second))

    def value(text: str, length: int) -> float:
        score = cosine_length(said(text, (0,) * max(1, length)), limit=limit)
        assert score is not None
        return score.value

    assert value("4", short) >= value("4", long) >= 0.5
    assert value("5", short) <= value("5", long) <= -0.5


def test_the_cosine_asks_another_reward_what_is_right() -> None:
    (score,) = cosine_length.judge([said("B", (1,), "B")], {"limit": 100, "correct": "multiple_choice"})
    assert score is not None
    assert score.value > 0.99
    params = {"tolerance": 0.1}
    (score,) = cosine_length.judge([said("4.1", (1,))], {"limit": 100, "params": params})
    assert score is not None
    assert score.value > 0.99
    unknown = said("A", (1,), gold=None)
    assert cosine_length(unknown, limit=100, correct="multiple_choice") is None
    empty = cosine_length(said(""), limit=100)
    assert empty is not None
    assert empty.value == -1.0


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"limit": 0}, "limit 0"),
        ({"right": [1.0]}, "right must be two values"),
        ({"wrong": [-2.0, 0.0]}, "wrong must be two values"),
        ({"correct": "mine.py:secret"}, "name of an installed reward"),
        ({"correct": "os:system"}, "name of an installed reward"),
        ({"correct": "judge"}, "judge one answer by a rule"),
        ({"correct": "judge_pairwise"}, "judge one answer by a rule"),
        ({"correct": "maths"}, "did you mean 'math'"),
        ({"params": {"tolerence": 0.1}}, "tolerence"),
    ],
)
def test_what_makes_no_sense_is_refused(params: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        cosine_length(said("4", (1,)), **{"limit": 100, **params})


@pytest.mark.parametrize(
    ("judged", "params"), [(overlong, {"limit": 9, "unit": "tokens"}), (cosine_length, {"limit": 9})]
)
def test_tokens_that_nobody_knows_are_an_error(judged: Reward, params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{judged.name} counts tokens.*completion_ids"):
        judged(said("4"), **params)
    assert judged(said("4"), **params | {"unit": "characters"}) is not None
    assert judged(said(""), **params) is not None
    with pytest.raises(RewardError, match="'words' is none of characters, tokens"):
        judged.check(params | {"unit": "words"})
