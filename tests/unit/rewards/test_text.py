"""Plain spellings of characters, which must not change what a text says."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.reading.text import LOWERED, RAISED, plain_width
from rewards.sdk import load_reward

PLAIN = [
    ("10² m", "10² m"),
    ("1½", "1 1/2"),
    ("½", "1/2"),
    ("２½ cups", "2 1/2 cups"),
    ("1⁄3", "1/3"),
    ("12.5㎡", "12.5m²"),
    ("9.8 ㎨", "9.8 m/s²"),
    ("㎝", "cm"),
    ("Ⅷ", "VIII"),
    ("ＡＢＣ１２３", "ABC123"),
    ("ﬁne", "fine"),
    ("Nº 5", "No 5"),
    ("30º", "30º"),
    ("H₂O", "H2O"),
    ("Al₂(SO₄)₃", "Al2(SO4)3"),
    ("log₂8", "log₂8"),
    ("1011₂", "1011₂"),
    ("10①", "10①"),
    ("②", "2"),
    ("Ca²⁺", "Ca²⁺"),
    ("ﾊﾟ", "パ"),
]


@pytest.mark.parametrize(("text", "plain"), PLAIN)
def test_characters_become_plain_and_values_stay(text: str, plain: str) -> None:
    assert plain_width(text) == plain


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(RAISED), st.sampled_from(LOWERED))
def test_a_raised_or_lowered_character_never_joins_a_number(number: int, raised: str, lowered: str) -> None:
    for script in (raised, lowered):
        flat = f"{number}{unicodedata.normalize('NFKC', script)}"
        assert plain_width(f"{number}{script}") != flat


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_it_is_nfkc_elsewhere_and_done_once(text: str) -> None:
    assert plain_width(plain_width(text)) == plain_width(text)
    if not any(c in RAISED + LOWERED or "<" in unicodedata.decomposition(c) for c in text):
        assert plain_width(text).replace("/", "") == unicodedata.normalize("NFKC", text).translate(
            dict.fromkeys(map(ord, "/⁄∕"))
        )


@pytest.mark.parametrize(
    ("name", "gold", "answer"),
    [
        ("answer_accuracy", "102", "10²"),
        ("answer_accuracy", "11/2", "1½"),
        ("edit_distance", "10² m", "102 m"),
        ("cer", "x²", "x2"),
        ("anls", "5⁴", "54"),
        ("math", "102", "10²"),
        ("math", "11/2", "1½"),
        ("math", "28", "2⁸"),
        ("counting", 52, "5²"),
    ],
)
def test_no_reward_takes_a_power_for_a_longer_number(name: str, gold: object, answer: str) -> None:
    score = load_reward(name)(RewardInput((), (), answer, ground_truth=gold))
    assert score is not None
    assert score.value < 1


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("100", "10²"),
        ("3/2", "1½"),
        ("5 m^2", "5㎡"),
        ("3", "log₂8"),
        ("x^{a+b}", "xᵃ⁺ᵇ"),
        ("30°", "30º"),
        ("x_1+x_2", "x₂+x₁"),
        ("1/2", "½"),
        ("256", "２⁸"),
    ],
)
def test_mathematics_reads_powers_and_indices(gold: str, answer: str) -> None:
    score = load_reward("math")(RewardInput((), (), answer, ground_truth=gold))
    assert score is not None
    assert score.value == 1
