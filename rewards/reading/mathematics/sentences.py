"""The formula in a sentence."""

import itertools
import re

from rewards.reading.mathematics.units import read_unit
from rewards.reading.number_words import in_digits
from rewards.reading.wording import taken_back

#: Longer answers are not looked at.
MAX_READ = 4000
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\\\[(.+?)\\\]|\\\((.+?)\\\)"
    r"|(?<![\\\d$])\$(?!\s)((?:[^$\\]|\\.)+?)(?<!\s)\$(?!\d)|`([^`\n]+)`",
    re.DOTALL,
)
#: A bold number, as in «**42** apples»; 2**3 is a power.
_BOLD = re.compile(r"(?<![0-9A-Za-z)\]}*])\*\*(?=\S)([^*\n]{1,200})(?<=\S)\*\*(?![0-9A-Za-z({\[*])")
_BEGINS_WITH_NUMBER = re.compile(r"(?:[A-Za-z]\s?=\s?)?[-−+]?\s?(?:\\?\$|[€¥£₹])?\s?[-−]?[.]?\d")
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
#: Words of any language, or Chinese, Japanese or Korean.
_SENTENCE = re.compile(
    r"(?=[^\d]*(?:[^\W\d_]\s|[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]))[^\W\d_](?:[^\W\d_]"
    r"|[\u064b-\u0652\u0900-\u0963' ,’，、])*[\s:：]*"
)
#: What is counted, in words that are no unit and do not change the number.
_COUNTED = re.compile(r"\s*[^\W\d_](?:[^\W\d_]|[\u064b-\u0652\u0900-\u0963' ’])*[.。!！।]?")
#: A second number beside a formula, as in «$12$ or 3», «between 3 and $12$», «3–$12$».
_NUMBER_BESIDE = re.compile(
    r"\s{0,3}(?:[;|/~–-]|or\b|and/or\b|and\b|vs\.?|versus\b|to\b|ou\b|oder\b|или\b|或者?)\s{0,3}[-−]?\d"
    r"|\s?,\s?[-−]?\d+\W*$",
    re.IGNORECASE,
)
_BESIDE_NUMBER = re.compile(
    r"\d\s{0,3}(?:[;|/~–-]|or|and/or|and|vs\.?|versus|to|ou|oder|или|或者?)\s{0,3}$", re.IGNORECASE
)
_SCALING = re.compile(
    r"[百千万亿億萬만억조천백]|million|milli?ard|tausend|mill?e|mil\b|тысяч|миллион|миллиард|ألف|مليون"
    r"|हज़ार|लाख|करोड़",
    re.IGNORECASE,
)
_CHANGING = re.compile(
    r"\b(?:negative|minus|plus|times|square|root|cube|log|ln|sin|cos|tan|sqrt|half|twice|double|not|no|never"
    r"|nor|and|or|than|between|least|most|over|under|above|below|to|from|step|option|figure|page|opci[oó]n"
    r"|paso|étape|schritt|вариант|шаг|рисунок|maybe|perhaps|wrong|if|exceeds?)\b"
    r"|[不非负第或和]|至少|最多|大于|小于|超过|分之",
    re.IGNORECASE,
)
#: Three English words or more, and what in them says more than what is counted, where and when.
_PLAIN_WORDS = re.compile(r"(?:[ -][A-Za-z][A-Za-z'’]{0,30},?){3,40}[.!]?")
_CHANGED_AFTER = re.compile(
    r"^[ -](?:times|percent|per cent|point|squared|cubed|factorial|minus|plus|mod\w*|divided|multiplied|over"
    r"|hundreds?|thousands?|millions?|billions?|trillions?|dozens?|scores?|degrees|radians|halves|thirds"
    r"|quarters|fourths|fifths|tenths|and|to|through|percentage|in (?:base|decimal|binary|hex\w*)|base|each"
    r"|x)\b"
    r"|\b(?:or|not|no|never|nor|neither|than|except|unless|if|maybe|perhaps|possibly|wrong|incorrect|least|most"
    r"|minus|plus|times|root|squared|short|give|half|halves|dozen|hundreds?|thousands?|millions?|pi|cannot|but|error|while"
    r"|instead|rather|would|could|should|might|hypothe\w+|assum\w+|left over|remainder)\b|n['’]t\b"
)
#: «72 divided by the number of days» is a computation left undone.
_COMPUTED = re.compile(
    r" (?:divided|multiplied|raised|added|subtracted|squared|cubed|reduced|increased|decreased)\b",
    re.IGNORECASE,
)
_WORD_END = re.compile(r"[A-Za-z](?= |$|[.,!])")
_MOST_UNIT_WORDS = 3
_CLAUSE = re.compile(r"[^.,;:。，；：\n]{1,60}")
#: What is no word: commands, and what joins inequalities.
_NO_WORD = re.compile(r"\\[A-Za-z]+|\b(?:or|and)\b")
_WORD = re.compile(r"[^\W\d_]{2}")
_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def formulas(answer: str) -> list[str]:
    """Return what a final answer may mean, as mathematics: itself, and what its sentence ends with.

    Formulas in dollar signs or brackets come before words: the first of them where the answer starts
    with it, else the last. Those joined by «and», «or» or commas are one list. A unit after them stays.
    Without such formulas it is the bold number, or the text itself and what follows its last «is», «are»,
    «有» and the like. What its clause denies or only bounds («not $5$», «at least 5») is no answer.

    Returns:
        One text or two, which read the same claim in two ways; none where nothing is claimed.
    """
    text = answer.strip()[-MAX_READ:].strip()
    if not text.startswith("**") or not text.endswith("**") or text.count("**") == 2:
        text = text.strip("* ")
    if _PLAIN_NUMBER.fullmatch(text):
        return [text]
    found = [
        match for match in _FORMULA.finditer(text) if not (match[match.lastindex or 0]).startswith(("^", "_"))
    ]
    bold = [match for match in _BOLD.finditer(text) if _BEGINS_WITH_NUMBER.match(match[1])]
    if found or len(bold) == 1:
        run, start, stop = _run(text, found or bold)
        beside = _NUMBER_BESIDE.match(text, stop) or _BESIDE_NUMBER.search(text[max(0, start - 20) : start])
        return [] if beside or taken_back(text, start, stop) else [run]
    verbs = list(_VERB.finditer(text))
    tail = _FILLER.sub("", text[verbs[-1].end() :].strip("* "), count=1) if verbs else ""
    if not tail.strip(" .。") or (_DIGIT.search(text) and not _DIGIT.search(tail)):
        tail = _only_number(text)
    tail = _without_words(tail)
    number = _NUMBER.search(text, text.rfind(tail)) if tail else _NUMBER.search(text)
    if number and taken_back(text, number.start(), number.end()):
        return [] if _WORD.search(_NO_WORD.sub(" ", text)) else [text]
    if number and _PLAIN_WORDS.fullmatch(text, number.end()) and _COMPUTED.match(text, number.end()):
        return []
    return [text, tail] if tail else [text]


def _only_number(text: str) -> str:
    """Return a sentence's only number and what follows it; "" where words change what it says."""
    numbers = list(_NUMBER.finditer(text))
    before = text[: numbers[0].start()] if len(numbers) == 1 else ""
    if not _SENTENCE.fullmatch(before) or _CHANGING.search(before):
        return ""
    after = text[numbers[0].end() :]
    if after.isascii() or read_unit(after) or _SCALING.search(after) or not _COUNTED.fullmatch(after):
        return text[len(before) :]
    return numbers[0][0]


def _without_words(tail: str) -> str:
    """Return a number and its unit without the words after them: «72 clips in April and May» is 72.

    A text whose words change the number, or name another one, stays as it is.
    """
    number = _NUMBER.match(tail)
    words = _PLAIN_WORDS.fullmatch(tail, number.end()) if number else None
    if not number or not words or _CHANGED_AFTER.search(words[0].lower()):
        return tail
    if in_digits(words[0].lower()) != words[0].lower():
        return tail
    ends = [found.end() for found in _WORD_END.finditer(words[0])][:_MOST_UNIT_WORDS]
    unit = next((words[0][:end] for end in reversed(ends) if read_unit(words[0][:end])), "")
    return number[0] + unit


def _run(text: str, found: list[re.Match[str]]) -> tuple[str, int, int]:
    """Join the formulas of one list: from the first where the text starts with it, else up to the last.

    Returns:
        The list, and where it starts and stops in the text.
    """
    first = last = 0 if found[0].start() == 0 else len(found) - 1
    joined = [_CONNECTED.fullmatch(text, a.end(), b.start()) for a, b in itertools.pairwise(found)]
    while first > 0 and joined[first - 1]:
        first -= 1
    while last < len(joined) and joined[last]:
        last += 1
    parts = [match.group(match.lastindex or 0) for match in found[first : last + 1]]
    clause = _CLAUSE.match(text, found[last].end())
    unit = clause.group() if clause and (read_unit(clause.group()) or "%" in clause.group()) else ""
    return ", ".join(parts) + unit, found[first].start(), found[last].end()
