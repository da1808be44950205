"""Numbers in English and Chinese words: "two hundred and five", "a dozen", 一百零五."""

import re
from collections.abc import Sequence
from fractions import Fraction

_SMALL: Sequence[str] = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen"
).split()
_TENS: Sequence[str] = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUES = {word: i for i, word in enumerate(_SMALL)} | {word: 20 + 10 * i for i, word in enumerate(_TENS)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_SMALL[1:10])}))?|{'|'.join(_SMALL)})"
_BELOW_1000 = rf"(?:(?:{_BELOW_100}|an?)[- ]hundred(?:,? (?:and )?{_BELOW_100})?|{_BELOW_100})"
_SCALED = rf"(?:{_BELOW_1000}|an?)[- ](?:{'|'.join(_SCALES)})"
_WORDS = re.compile(
    rf"\b(?:(?P<half>half an?|half) dozen|(?P<dozens>{_BELOW_100}|an?|\d{{1,6}})[- ]dozen"
    rf"|(?P<digits>\d{{1,6}}(?:\.\d{{1,6}})?)[- ](?P<scale>hundred|{'|'.join(_SCALES)})"
    rf"|(?P<words>{_SCALED}(?:,? (?:and )?{_SCALED}){{0,3}}(?:,? (?:and )?{_BELOW_1000})?|{_BELOW_1000})"
    r"(?P<more> and a half)?)\b"
)
_WORD = re.compile(r"[a-z]+")
_LONGEST_SPOKEN = 100
_BEGINS_SPOKEN = re.compile(
    rf"(?i:half|an?|negative|minus|{'|'.join(_VALUES)})\b|[零一二三四五六七八九十〇两兩壹贰叁肆伍陆柒捌玖]"
)
_NEGATIVE = re.compile(r"(?:negative|minus) ")
_PART_SIZES = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6}
_PART_SIZES |= {"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}
_PART = re.compile(rf"(?:(?P<top>{_BELOW_100}|an?)[- ])?(?P<size>(?:{'|'.join(_PART_SIZES)})s?)")
_COUNT = re.compile(
    r"\d+(?:\.5)?(?: (?!of|or|and|to|by|over|point|third|fourth|fifth|half)[a-z ]+|[一-鿿]{1,3})?"
)

_CHINESE: dict[str, int] = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_CHINESE |= {c: i for i, c in enumerate("壹贰叁肆伍陆柒捌玖", 1)}
_STEPS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000, "万": 10**4, "萬": 10**4}
_STEPS |= {"亿": 10**8, "億": 10**8}
_DIGITS, _POWERS = "".join(_CHINESE), "".join(_STEPS)
#: 一 in a word such as 一共, "in all", is no number.
_CHINESE_NUMBER = re.compile(
    rf"一(?=[共起些样定下直])|(?:[{_DIGITS}]|(?<![几数\d.])[十拾])[{_DIGITS}{_POWERS}]{{0,20}}"
    rf"|(?<![\d.,])(?:\d{{1,4}}[百千万萬亿億]){{1,3}}[{_DIGITS}{_POWERS}]{{0,20}}"
)
_CHINESE_PART = re.compile(r"[0-9]+|.")


def in_digits(text: str) -> str:
    """Write the numbers of a text in lower case in digits: "twenty-one" becomes "21", 一百零五 "105"."""
    return _CHINESE_NUMBER.sub(_chinese, _WORDS.sub(_english, text))


def spoken_number(text: str) -> str | None:
    """Write a text that is one number in words in digits, as "2/3" for two thirds; None for anything else.

    Words in small letters may follow, which say what is counted.
    """
    if len(text) > _LONGEST_SPOKEN or not _BEGINS_SPOKEN.match(text):
        return None
    sign, lower = "", text.lower()
    if negative := _NEGATIVE.match(lower):
        sign, lower = "-", lower[negative.end() :]
    if part := _PART.fullmatch(lower):
        top = _spoken(part["top"] or "one") or 1
        return f"{sign}{top}/{_PART_SIZES[part['size'].rstrip('s')]}"
    found = _COUNT.fullmatch(in_digits(lower))
    if found is None or text[1:] != text[1:].lower():
        return None
    return f"{sign}{found[0]}"


def _english(found: re.Match[str]) -> str:
    if found["half"]:
        return "6"
    if dozens := found["dozens"]:
        return str(12 * (int(dozens) if dozens.isdigit() else max(1, _spoken(dozens))))
    if digits := found["digits"]:
        scale = _SCALES.get(found["scale"], 100)
        value = Fraction(digits) * scale
        return str(int(value)) if value.denominator == 1 else found[0]
    return f"{_spoken(found['words'])}{'.5' if found['more'] else ''}"


def _spoken(words: str) -> int:
    """Return the number that a phrase of number words says."""
    total = group = 0
    for word in _WORD.findall(words):
        if word in _SCALES:
            total, group = total + max(group, 1) * _SCALES[word], 0
        elif word == "hundred":
            group = max(group, 1) * 100
        else:
            group += _VALUES.get(word, 0)  # «a» and «and» add nothing
    return total + group


def _chinese(found: re.Match[str]) -> str:
    """Write a Chinese number in digits; figure by figure (二〇二四) if it has no 十, 百, 千."""
    text = found[0]
    if text == "一" and found.end() < len(found.string) and found.string[found.end()] in "共起些样定下直":
        return text
    if not any(c in _STEPS for c in text):
        figures = [str(_CHINESE[c]) for c in text]
        # 五六个 is five or six of them.
        return (" " if len(figures) == 2 and "0" not in figures else "").join(figures)
    total = section = digit = 0
    step = 1
    for c in _CHINESE_PART.findall(text):
        if c in _STEPS:
            size, step = _STEPS[c], _STEPS[c]
            if size >= 10**4:
                total, section, digit = (total + section + digit) * size, 0, 0
            else:
                section, digit = section + (digit or 1) * size, 0
        else:
            digit = _CHINESE[c] if c in _CHINESE else int(c)
            step = 1 if digit == 0 else step
    # 一百二 is 120, 一百零二 is 102.
    last = digit * step // 10 if step > 10 and len(text) > 1 and text[-2] in _STEPS else digit
    return str(total + section + last)
