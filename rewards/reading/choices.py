"""Which options a short text chooses: by their letters, by their texts, or by both.

An answer and the options are cleaned by the same function, and compared from strict to kind: an option is
meant where the strictest comparison that finds any finds one. No formula is solved.
"""

import re
import string
from collections.abc import Collection, Mapping
from functools import lru_cache

from rewards.reading.answers import normalise, undressed
from rewards.reading.mathematics.quantities import read_quantity, same_quantity
from rewards.reading.mathematics.spelling import canonical
from rewards.reading.text import plain_width
from rewards.reading.wording import denied, qualified, taken_back

Options = Mapping[str, str]
_QUOTES = str.maketrans("‘’‚‛“”„‟′″«»", '\'\'\'\'""""\'"""')
_DASHES = re.compile("[‐‑‒–—−]")
_AROUND = (
    ("**", "**"),
    ("__", "__"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    ("*", "*"),
    ("\\[", "\\]"),
    ("\\boxed{", "}"),
    ("{", "}"),
    ("【", "】"),
    ("<", ">"),
)
#: One letter of «A», «(A)», «A, C», «A and C», «A、C», and what joins it to the next; «AC» is in capitals.
_LETTER = re.compile(
    r"\s?[(\[]?\s?([A-Za-z])(?![^\W_])(?:\s?[)\]])?\s?\.?"
    r"\s?(?:,?\s?(?:(?:and|und|et|y|e|и|と)(?!\w)|[&和與与及و])|[,、;])?\s?"
)
_RUN_OF_CAPITALS = re.compile(r"[A-Z]{2,26}")
#: What is said around a letter: «option B», «I choose B», «B is correct», «la B».
_CALLED = re.compile(
    r"^(?:(?:so|thus|therefore|hence|then|ans\.?|answer)(?:,|:| -)? |(?:i|we)(?: would| will"
    r"|['’]d)? (?:choose|pick|select|go with|say|answer|vote for|think)"
    r"(?: (?:it is|it['’]s|that))?:? |(?:it|that|this)(?: is|['’]s) |it must be |(?:my |the )?(?:final "
    r"|best |correct |right )*"
    r"(?:options?|choices?|answers?|letters?|statements?)(?: (?:is|are|would be|must be"
    r"|choice))?\s?[:：]?\s?|choose |pick |select "
    r"|(?:我|应|应该|本题|故|所以|因此)*(?:选择?|選擇?|選|選択肢|选项|答案|答)(?:是|为|為|は"
    r"|项)?\s?[:：]?\s?|(?:la |l['’]|die |le |el |il |a |o )?"
    r"(?:opción|opcion|opção|option|opzione|lettre|letra|réponse|respuesta|antwort|lösung|вариант|ответ"
    r"|буква|الخيار|الإجابة|विकल्प|보기|정답은?)"
    r"(?: correct[ae]| correcta)?(?: (?:es|est|ist|è|é|la|:))*\s?[:：—-]?\s?|(?:la|die|le|el|a|o"
    r"|il) (?=[A-Z]\b))+",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    r"(?:,? (?:is|are|seems|must be|would be) (?:indeed |definitely |clearly |thus |therefore )?(?:the "
    r"|my |a )?(?:only |most )?"
    r"(?:final |best |most )?(?:correct|right|true|best|answer|choice|accurate|appropriate|suitable|one)"
    r"(?: (?:answer|option|choice|one|statement))?(?: here)?"
    r"|(?:这个?|這個?)?选项|(?:是|才是)?(?<!不)(?:正确|對|对|正確)(?:答案|选项)?的?|が正(?:しい|解)(?:です)?|(?:이"
    r"|가)? ?(?:정답|맞)[^\s]{0,5}|번|항"
    r"|(?: es| est| ist| è| é)? (?:la |die |das )?(?:correct[aeo]|richtig|giusta|верно"
    r"|правильный ответ))\s?[.。!]?$",
    re.IGNORECASE,
)
#: «C is the aorta, so» before «I choose E».
_CONCLUSION = re.compile(r"^.*[,;.] ?(?:and )?(?:so|thus|hence|therefore),? (?=\S)", re.IGNORECASE)
#: «B. the red one», «(B) red», «B: red», «B - red», «B (red)».
_WITH_TEXT = re.compile(
    r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])(?=\s?[).:、．：,]|\s[-–—(=]"
    r"|\s?（))\s?[).:、．：,]{0,2}\s?(?:[-–—=]\s)?\s?(\S.*)",
    re.DOTALL,
)
#: «The value is −1.5», «It cannot be determined».
_SENTENCE_IS = re.compile(
    r"((?:the|this|that|it|so|thus|therefore|hence|in|for|based|from|according|as)\b[^\n]{0,300}?"
    r"(?:\b(?:is|are|was|were|equals|shows|be|called)\b|(?<=\bit)|(?<=\bthis)|(?<=\bthat)))\s(?:(?:about|approximately|therefore|thus"
    r"|probably|likely|most likely) )?(\S[^\n]*)",
    re.IGNORECASE,
)
_TEXT_THEN_LETTER = re.compile(r"(\S.*?)\s?[(\[]([A-Za-z])[)\]]", re.DOTALL)
_ANOTHER = re.compile(
    r"\([A-Z]\)|(?<![A-Za-z])[B-HJ-Z](?![A-Za-z'’])|(?<![A-Za-z])A\s*[.:)、,]|(?:\b(?:and|or|not)\b"
    r"|[和或])\s*\(?[A-Z]\b"
)
_SEPARATOR = re.compile(r"\s*(?:[,;、&]|\band\b|和)\s*", re.IGNORECASE)
_REMARK = re.compile(r"(?:[^\W\d_]{2,}\W{1,3}(?:\w+\W{1,3}){2,}|[\u4e00-\u9fff]{5,})")


def cleaned(text: str) -> str:
    """Return a text without white space, emphasis, LaTeX or quotation marks around it, as one line."""
    text = _DASHES.sub("-", " ".join(undressed(plain_width(text)).translate(_QUOTES).split()))
    before = ""
    while before != text:
        before = text
        for left, right in _AROUND:
            inner = text[len(left) : len(text) - len(right)]
            if (
                inner.strip()
                and text.startswith(left)
                and text.endswith(right)
                and not _overlaps(inner, left, right)
            ):
                text = undressed(inner.strip())
    return text


def _overlaps(inner: str, left: str, right: str) -> bool:
    return left in inner or right in inner or (left == "*" and "*" in inner)


def _stopped(text: str) -> str:
    return text.rstrip(" .。,，;；!！") or text


@lru_cache(maxsize=4096)
def _spellings(text: str) -> tuple[str, ...]:
    """Spell a text in several ways, from strict to kind: as it is, as mathematics, without its case."""
    plain = _stopped(cleaned(text))
    # «$3$ m» and «3 m» are the same.
    bare = plain.replace("$", "") if plain.count("$") % 2 == 0 else plain
    mathematics = canonical(bare) or bare
    tight = "".join(mathematics.split())
    return (
        plain,
        mathematics,
        "".join(plain.split()),
        tight,
        normalise(plain),
        "".join(normalise(mathematics).split()),
    )


def duplicates(options: Options) -> list[str]:
    """Return the letters of options that another option equals letter by letter."""
    texts = [" ".join(text.split()) for text in options.values()]
    return [letter for letter, text in options.items() if texts.count(" ".join(text.split())) > 1]


def by_text(text: str, options: Options) -> str:
    """Return the letter of the one option whose text or number this is, or ""."""
    if not options:
        return ""
    wanted = _spellings(text)
    every = {letter: _spellings(option) for letter, option in options.items()}
    for degree, spelling in enumerate(wanted):
        if found := [letter for letter, spelled in every.items() if spelled[degree] == spelling]:
            return found[0] if len(found) == 1 else ""
    quantity = read_quantity(wanted[1]) if any(c.isdigit() for c in text) else None
    if quantity is None:
        return ""
    numbers = {letter: read_quantity(spelled[1]) for letter, spelled in every.items()}
    same = [c for c, number in numbers.items() if number is not None and same_quantity(number, quantity, 0.0)]
    return same[0] if len(same) == 1 else ""


def chosen(text: str, options: Options) -> frozenset[str]:
    """Return the letters that a text chooses, none where it chooses nothing or cannot be read.

    Letters come before texts, even where the options are letters. A letter with the text of another option
    chooses nothing, nor does one that is denied, or one beside another («A or B»).
    """
    plain = _stopped(cleaned(text))
    if not plain:
        return frozenset()
    own = _WITH_TEXT.fullmatch(plain)
    if (
        own
        and "," not in plain[:4]
        and by_text(own[4], options) == (letter := own[1] or own[2] or own[3]).upper()
    ):
        return frozenset(letter.upper())
    if letters := _letters(plain, options):
        return letters
    if letter := by_text(plain, options):
        return frozenset(letter)
    bare = _stopped(cleaned(_IS_RIGHT.sub("", _CALLED.sub("", plain))))
    if letter := _named_in_sentence(plain, options):
        return frozenset(letter)
    concluded = _CONCLUSION.sub("", plain, count=1)
    for one in dict.fromkeys((plain, bare, _stopped(cleaned(_IS_RIGHT.sub("", _CALLED.sub("", concluded)))))):
        if letter := _letters(one, options) or frozenset(_one(one, options)):
            return letter
    parts = [part for part in _SEPARATOR.split(bare) if part] if options else []
    found = [_one(part, options) or "".join(_letters(part, options)) for part in parts]
    return frozenset(found) if len(found) > 1 and all(len(one) == 1 for one in found) else frozenset()


def _named_in_sentence(text: str, options: Options) -> str:
    """Return the letter of the option that a sentence ends with, as in «The value is 5», and names alone."""
    found = _SENTENCE_IS.fullmatch(text) if options else None
    if not found or qualified(found[1]) or denied(found[1]):
        return ""
    letter = by_text(found[2], options)
    others = [option for other, option in options.items() if other != letter]
    return letter if letter and not _mentions(found[1], others) else ""


def _letters(text: str, options: Options) -> frozenset[str]:
    """Return the letters that a text consists of, where all are options and none stands there twice."""
    letters, position = (
        list(text) if _RUN_OF_CAPITALS.fullmatch(text) and text not in options.values() else [],
        0,
    )
    while not letters or 0 < position < len(text):
        found = _LETTER.match(text, position)
        if not found or len(letters) > len(string.ascii_uppercase):
            return frozenset()
        letters.append(found[1])
        position = found.end()
    if len({letter.isupper() for letter in letters}) > 1:  # «a» may be an article
        return frozenset()
    letters = [letter.upper() for letter in letters]
    known = not options or all(letter in options for letter in letters)
    return frozenset(letters) if known and len(set(letters)) == len(letters) else frozenset()


def _one(text: str, options: Options) -> str:
    """Return the one letter that a text chooses by an option's text, or by a letter and its text; or ""."""
    if letter := by_text(text, options):
        return letter
    if found := _WITH_TEXT.fullmatch(text):
        letter, said = (found[1] or found[2] or found[3]).upper(), found[4]
    elif found := _TEXT_THEN_LETTER.fullmatch(text):
        letter, said = found[2].upper(), found[1]
    else:
        return _letter_before_its_text(text, options)
    at = text.find(said) if found and found.re is _WITH_TEXT else 0
    if at and taken_back(text, 0, len(text[:at].rstrip())):
        return ""
    if not options:
        return "" if not at or _ANOTHER.search(said) or denied(said) else letter
    if letter not in options:
        return ""
    return letter if _agrees(said, letter, options) else ""


def _agrees(said: str, letter: str, options: Options) -> bool:
    """Check whether what stands after a letter is its option's text, or a remark that names no other one."""
    for text in dict.fromkeys((said, _unbracketed(said))):
        if meant := by_text(text, options):
            return meant == letter
    own = cleaned(options[letter])
    said = cleaned(said)
    begins = said.casefold().startswith(own.casefold()) and not said[len(own) :][:1].isalnum()
    rest = said[len(own) :] if begins else said
    if begins and not any(c.isalnum() for c in rest):
        return True
    if qualified(rest) or _ANOTHER.search(rest) or not (_REMARK.search(rest) or begins):
        return False
    return not _mentions(rest, [text for other, text in options.items() if other != letter])


def _unbracketed(text: str) -> str:
    """Return a text without the one pair of parentheses around it, which may have lost its first."""
    text = text.strip()
    text = text[1:] if text.startswith("(") and text.endswith(")") else text
    return text[:-1] if text.endswith(")") and text.count("(") < text.count(")") else text


def _mentions(text: str, others: Collection[str]) -> bool:
    """Check whether one of these texts stands in a text as words of its own."""
    lowered = text.casefold()
    names = [re.escape(cleaned(other).casefold()) for other in others]
    return any(re.search(rf"(?<!\w){name}(?!\w)", lowered) for name in names if name)


def _letter_before_its_text(text: str, options: Options) -> str:
    """Return the letter of «B red», or of «B because it is red» where no option is named after it."""
    letter, _, said = text.partition(" ")
    if len(letter) != 1 or letter not in options or not said:
        return ""
    return letter if by_text(said, options) == letter else ""
