"""How benchmarks with short answers spell them alike: VQA, MMMU, ChartQA, SQuAD.

Each function follows its benchmark's published evaluation; what is different says so. Texts are cut to
`MAX_LENGTH`, so that every pattern takes bounded time.
"""

import math
import re
import string
import unicodedata

from posttrain.messages import without_thinking
from rewards.reading.answers import readings

#: Answers to questions are short; of a longer text only the end is read.
MAX_LENGTH = 10_000

_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(_UNITS)}}
_ARTICLES = frozenset(("a", "an", "the"))
_VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've
somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
#: Every spelling of a contraction with one apostrophe missing.
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED for at, mark in enumerate(word) if mark == "'"
}

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3}){1,6}|\d{1,30})?(?:\.\d{0,30})?(?:[eE][-+]?\d{1,3})?")

_MMMU_SENTENCE = re.compile(r"\.\s(?=[A-Z])|\n")
_MMMU_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_MMMU_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d{1,30}(?:\.\d{1,30})?[eE][+-]?\d{1,3}"),
    re.compile(r"-?(?:\d{1,30}\.\d{1,30}|\.\d{1,30}|\d{1,30}\b)(?![eE][+-]?\d+)(?![,\d])"),
)

_NO_SPACES = re.compile("[\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def final_and_whole(answer: str) -> list[str]:
    """Return what an answer may mean: the readings of its final answer, and all of it after the thinking."""
    whole = without_thinking(answer)[-MAX_LENGTH:]
    return list(dict.fromkeys((*readings(whole), whole)))


def vqa_spelling(text: str) -> str:
    """Spell an answer as the VQA evaluation does: no punctuation and articles, digits, apostrophes.

    A mark goes where it touches a space, or where a comma stands between digits anywhere in the text; else
    it becomes a space.
    """
    text = " ".join(text.split())
    bare = text
    for mark in _VQA_MARKS:
        gone = f"{mark} " in text or f" {mark}" in text or _COMMA_IN_NUMBER.search(text)
        bare = bare.replace(mark, "" if gone else " ")
    words = (_DIGITS.get(word, word) for word in _PERIOD.sub("", bare).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def number(text: str) -> float | None:
    """Return the finite decimal number that a text is, commas between thousands allowed, or None."""
    if not _NUMBER.fullmatch(text) or not any(c.isdigit() for c in text):
        return None
    value = float(text.replace(",", ""))
    return value if math.isfinite(value) else None


def mmmu_spelling(text: str) -> list[float | str]:
    """Spell a text as MMMU's `normalize_str` does: numbers to two decimals, one letter beside a space."""
    text = text.strip()
    if (value := number(text)) is not None:
        return [round(value, 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def mmmu_candidates(response: str) -> list[float | str]:
    """List what MMMU's `parse_open_response` takes for the answer: ends of sentences, and their numbers."""
    keys = _mmmu_keys(response)
    numbers = [found for key in keys for pattern in _MMMU_NUMBERS for found in pattern.findall(key)]
    spelled = (spelling for text in (*keys, *numbers) for spelling in mmmu_spelling(text))
    return list(dict.fromkeys(spelled))


def _mmmu_keys(response: str) -> list[str]:
    """Return what follows the last indicator such as "is" in each sentence, the shortest of them."""
    sentences = _MMMU_SENTENCE.split(response.strip().strip(".").lower())
    keys = []
    for index, sentence in enumerate(sentences):
        last = index == len(sentences) - 1
        indicators = (*_MMMU_INDICATORS, "=") if last else _MMMU_INDICATORS
        ends = [
            sentence.rpartition(indicator)[2].strip() for indicator in indicators if indicator in sentence
        ]
        shortest = min(filter(None, ends), key=len, default="")
        if shortest and shortest not in tuple(":,.!?;'"):
            keys.append(shortest)
    return keys or [response]


def squad_tokens(text: str) -> list[str]:
    """Split into SQuAD's tokens: lower case, without punctuation and articles.

    Punctuation of every script goes, and each Chinese or Japanese character is a token, as in CMRC 2018.
    """
    text = unicodedata.normalize("NFC", text).lower()
    text = "".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    text = _NO_SPACES.sub(r" \g<0> ", text)
    return [token for token in text.split() if token not in _ARTICLES]
