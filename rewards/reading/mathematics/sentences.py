"""The formula in a sentence."""

import itertools
import re

from rewards.reading.mathematics.units import read_unit

#: Longer answers are not looked at.
MAX_READ = 4000
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\\\[(.+?)\\\]|\\\((.+?)\\\)"
    r"|(?<![\\\d$])\$(?!\s)((?:[^$\\]|\\.)+?)(?<!\s)\$(?!\d)|`([^`\n]+)`",
    re.DOTALL,
)
_CONNECTED = re.compile(r"[\s,;，；、]*(?:and|or|和|或|与|及|以及)?[\s,，]*", re.IGNORECASE)
_VERB = re.compile(
    r"\b(?:is|are|was|were|equals?|be|gives?|get|has|have|contains?|takes?|costs?)\b"
    r"|[为是有得]|等于|一?共|[:：](?=\s)",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"\s*(?:(?:therefore|thus|then|hence|so|about|approximately|around|exactly|only|just|simply|now|also"
    r"|equal to|a total of|given by)\b\s*)*",
    re.IGNORECASE,
)
_DIGIT = re.compile(r"\d")
_NUMBER = re.compile(r"(?:\\?\$|[€¥£])?-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
#: At least two words, or Chinese.
_SENTENCE = re.compile(r"(?:[A-Za-z][A-Za-z' ,]* [A-Za-z',]*|[A-Za-z ,，]*[一-鿿][A-Za-z ,，一-鿿]*)[\s:：]*")
_CHANGING = re.compile(
    r"\b(?:negative|minus|plus|times|square|root|cube|log|ln|sin|cos|tan|sqrt|half|twice|double|not|no|never"
    r"|nor|and|or|than|between|least|most|over|under|above|below|to|from|step|option|maybe|perhaps|wrong|if|exceeds?)\b"
    r"|[不非负第或和]|至少|最多|大于|小于|超过|分之",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[^.,;:。，；：\n]{1,60}")
_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def formulas(answer: str) -> list[str]:
    """Return what a final answer may mean, as mathematics: itself, and what its sentence ends with.

    Formulas in dollar signs or brackets come before words: the first of them where the answer starts
    with it, else the last. Those joined by «and», «or» or commas are one list. A unit after them stays.
    Without such formulas it is the text, or what follows the last «is», «are», «有» and the like.

    Returns:
        One text or two, which read the same claim in two ways.
    """
    text = answer.strip()[-MAX_READ:].strip("* ")
    if _PLAIN_NUMBER.fullmatch(text):
        return [text]
    found = list(_FORMULA.finditer(text))
    if found:
        return [_run(text, found)]
    verbs = list(_VERB.finditer(text))
    tail = _FILLER.sub("", text[verbs[-1].end() :].strip("* "), count=1) if verbs else ""
    if not tail.strip(" .。") or (_DIGIT.search(text) and not _DIGIT.search(tail)):
        tail = _only_number(text)
    return [text, tail] if tail else [text]


def _only_number(text: str) -> str:
    """Return a sentence's only number and what follows it; "" where words change what it says."""
    numbers = list(_NUMBER.finditer(text))
    before = text[: numbers[0].start()] if len(numbers) == 1 else ""
    return text[len(before) :] if _SENTENCE.fullmatch(before) and not _CHANGING.search(before) else ""


def _run(text: str, found: list[re.Match[str]]) -> str:
    """Join the formulas of one list: from the first where the text starts with it, else up to the last."""
    first = last = 0 if found[0].start() == 0 else len(found) - 1
    joined = [_CONNECTED.fullmatch(text, a.end(), b.start()) for a, b in itertools.pairwise(found)]
    while first > 0 and joined[first - 1]:
        first -= 1
    while last < len(joined) and joined[last]:
        last += 1
    parts = [match.group(match.lastindex or 0) for match in found[first : last + 1]]
    clause = _CLAUSE.match(text, found[last].end())
    unit = clause.group() if clause and (read_unit(clause.group()) or "%" in clause.group()) else ""
    return ", ".join(parts) + unit
