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


@pytest.mark.parametrize(
    "loop",
    [
        " ".join(f"Step {i}: I should look closer at the image again." for i in range(40)),
        " ".join(f"Step {i}: I should look closer at the image again." for i in range(12)),
        ", ".join(f'{{"bbox_2d": [{i}, {i}, {i + 20}, {i + 20}], "label": "person"}}' for i in range(200)),
        ", ".join(f'{{"bbox_2d": [{20 * i}, 5, {20 * i + 20}, 45], "label": "cup"}}' for i in range(80)),
        ", ".join(f"[{i}, {i}, {i + 20}, {i + 20}]" for i in range(200)),
        ", ".join(f"({100 + i}, 200)" for i in range(150)),
        "\n".join(f"Frame {i}: nothing happens here." for i in range(60)),
        " ".join(f"So x = {i}, that is wrong, try x = {i + 1}." for i in range(40)),
        " ".join(f"At 00:{i:02} the man walks to the left." for i in range(50)),
        " ".join(f"{200 - i} bottles of beer on the wall, take one down." for i in range(60)),
        "".join(f"第{i}步：我应该再仔细看看图片。" for i in range(30)),
        "I should look closer. " * 10,
        "Wait, let me check the angle again. " * 8,
        "所以答案是四。" * 8,
        "a" * 300,
        "ha" * 100,
        "ฉันควรดูภาพอีกครั้ง" * 60,
    ],
    ids=lambda text: text[:30],
)
def test_loops_without_a_fixed_line(loop: str) -> None:
    assert value(loop) == -1


words = st.lists(st.text("abcdefghijklmnop", min_size=2, max_size=8), min_size=4, max_size=12)


@given(words, st.integers(0, 1000), st.sampled_from([1, -1, 7, 20]), st.integers(0, 3))
def test_a_sentence_with_a_running_number_is_a_loop(
    sentence: list[str], start: int, step: int, place: int
) -> None:
    numbered = [
        " ".join([*sentence[:place], str(start + 2000 + step * i), *sentence[place:]]) for i in range(80)
    ]
    assert value(". ".join(numbered)) == -1


@given(st.integers(0, 1000))
def test_lists_of_different_things_are_none(seed: int) -> None:
    rng = random.Random(seed)
    corners = [[rng.randrange(500), rng.randrange(500), rng.randrange(500, 999)] for _ in range(80)]
    lists = [
        str([{"bbox_2d": [*corner, 999], "label": rng.choice(["person", "dog"])} for corner in corners]),
        "\n".join(f"| {i} | {rng.randrange(1000)} | {rng.randrange(1000)} |" for i in range(60)),
        "\n".join(f"Question {i}: {rng.choice('ABCD')}" for i in range(1, 61)),
        "\n".join(f"{i} x 7 = {7 * i}" for i in range(1, 21)),
        f"I count them: {', '.join(map(str, range(1, 81)))}. So there are 80.",
        str([{"id": i, "value": rng.randrange(1000)} for i in range(60)]),
    ]
    for text in lists:
        assert value(text) > -0.05, text


def test_a_refrain_costs_little() -> None:
    rng = random.Random(0)
    verses = [" ".join(f"word{rng.randrange(900)}" for _ in range(8)) for _ in range(12)]
    song = "\n".join(line + "\nAnd home we go" * (i % 4 == 3) for i, line in enumerate(verses))
    assert value(song) == 0


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
    assert score.parts.keys() == {"phrases", "numbered", "lines", "characters"}


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
