"""Numbers in words, against a speller of our own."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.reading.number_words import in_digits

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
CHINESE = "零一二三四五六七八九"


def english(n: int, joint: str) -> str:
    """Spell a number below 10^9, «and» or a space between hundreds and the rest."""
    for scale, name in ((10**6, "million"), (1000, "thousand")):
        if n >= scale:
            rest = n % scale
            gap = joint if 0 < rest < 100 else " "
            return f"{english(n // scale, joint)} {name}" + (gap + english(rest, joint) if rest else "")
    if n >= 100:
        return f"{SMALL[n // 100]} hundred" + (joint + english(n % 100, joint) if n % 100 else "")
    if n >= 20:
        return TENS[n // 10] + (f"-{SMALL[n % 10]}" if n % 10 else "")
    return SMALL[n]


def chinese(n: int) -> str:
    """Spell a number below 10^8, with 零 for a gap."""
    if n >= 10**4:
        rest = n % 10**4
        return (
            chinese(n // 10**4) + "万" + ("零" if 0 < rest < 1000 else "") + (chinese(rest) if rest else "")
        )
    text, skipped = "", False
    for size, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = n // size % 10
        if digit:
            text += ("零" if skipped and text else "") + CHINESE[digit] + name
        skipped = not digit
    return text or "零"


@given(st.integers(0, 10**9 - 1), st.sampled_from([" and ", " "]))
def test_every_english_number_is_read(number: int, joint: str) -> None:
    assert in_digits(english(number, joint)) == str(number)


@given(st.integers(0, 10**8 - 1))
def test_every_chinese_number_is_read(number: int) -> None:
    assert in_digits(chinese(number)) == str(number)


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("a dozen", "12"),
        ("two dozen eggs", "24 eggs"),
        ("half a dozen", "6"),
        ("a hundred and one", "101"),
        ("nineteen hundred", "1900"),
        ("3 hundred", "300"),
        ("1.5 million", "1500000"),
        ("two and a half", "2.5"),
        ("ten thirty", "10 30"),
        ("two and three", "2 and 3"),
        ("five six", "5 6"),
        ("hundreds of them", "hundreds of them"),
        ("someone", "someone"),
        ("十五", "15"),
        ("一百二", "120"),
        ("两千零三", "2003"),
        ("二〇二四", "2024"),
        ("壹佰贰拾", "120"),
        ("2万5千", "25000"),
        ("五六个", "5 6个"),
        ("一共十二个", "一共12个"),
        ("zero nineteen twenty thirty-three ninety nine", "0 19 20 33 99"),
    ],
)
def test_spellings(text: str, digits: str) -> None:
    assert in_digits(text) == digits


@pytest.mark.parametrize("piece", ["one ", "hundred and ", "a ", "twenty-", "一", "十万", "one thousand "])
def test_hostile_text_takes_little_time(piece: str) -> None:
    begun = time.process_time()
    in_digits(piece * (20_000 // len(piece)))
    assert time.process_time() - begun < 1


@given(st.text("零一二十百千万亿几 onetwhudrdaz-5", max_size=40))
def test_any_text_can_be_read(text: str) -> None:
    assert isinstance(in_digits(text), str)
