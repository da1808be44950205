"""The units of a text that people count: words, sentences, paragraphs, lines, list items, headings.

Each function takes time linear in the text, whatever the text is: a model may have written it.
"""

import re
import unicodedata
from collections.abc import Callable, Sized

#: Han and kana, which are written without spaces: each character counts as a word.
WIDE = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
#: Vowel signs and accents, which Python's `\w` leaves out.
_MARKS = "\u0300-\u036f\u064b-\u065f\u0900-\u0963\u0966-\u0dff\u0e00-\u0e7f"
#: Letters and signs without ink: fillers of Hangul, the empty Braille cell.
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"
_WORD = re.compile(
    rf"[{WIDE}]|(?:[^\W_{WIDE}]|[{_MARKS}])++(?:['’\-](?:[^\W_{WIDE}]|[{_MARKS}])++)*+",
)
_ITEM = r"(?:[-*+•–]|\d{1,3}[.)])[ \t]"
#: Runs of marks are entered at their first only, so that a long run is not read again from each of its marks.
_SENTENCE_END = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s)"
    r"|[。！？]++[”’」』）\"]*+"
    rf"|\n[ \t]*+(?:\n[ \t]*+)++|\n[ \t]*+(?={_ITEM})"
)
_ABBREVIATION = re.compile(r"\b(?:mrs?|ms|dr|prof|st|no|fig|eq|vs|etc|approx|e\.g|i\.e|cf)$", re.IGNORECASE)
_INITIAL = re.compile(r"(?:^|\b[A-Z]\w{0,30}\s|\b[A-Z]\.\s?)[A-Z]$")
_RULE = re.compile(r"\s*(?:\*{3,}|-{3,}|_{3,})\s*")
_BULLET = re.compile(r"\s*[-*+•–]\s+\S")
_NUMBERED = re.compile(r"\s*\d{1,3}(?:[.)]\s+|[、．])\S")
_HEADING = re.compile(r"#{1,6}[ \t]+\S")
_HIGHLIGHT = re.compile(r"(?<!\*)\*{1,2}(?=[^*\s])([^*\n]+)(?<!\s)\*")
_BRACKETED = re.compile(r"\[[^\[\]\n]{1,100}\](?!\()")


def visible(text: str) -> str:
    """Remove the characters that show nothing, and white space around the text."""
    if not text.isascii():
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cf", "Cc"))
    return text.strip()


def has_content(text: str) -> bool:
    """Check for a letter, digit or symbol, and not only punctuation and space."""
    return any((c.isalnum() or unicodedata.category(c)[0] == "S") and c not in _BLANK for c in text)


def words(text: str) -> list[str]:
    """Split into words by spaces and punctuation (`don't` is one); each Han or kana character is one."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Split into sentences by closing marks; empty lines and list items end one, abbreviations do not."""
    found: list[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(text):
        before = text[max(start, end.start() - 40) : end.start()]
        if end.group() == "." and (_ABBREVIATION.search(before) or _INITIAL.search(before)):
            continue
        found.append(text[start : end.end()])
        start = end.end()
    found.append(text[start:])
    return [sentence.strip() for sentence in found if has_content(sentence)]


def paragraphs(text: str) -> list[str]:
    """Split into blocks of lines between empty lines or rules (`***`, `---`)."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line.strip() or _RULE.fullmatch(line):
            blocks.append([])
        else:
            blocks[-1].append(line)
    joined = ("\n".join(block) for block in blocks)
    return [block for block in joined if has_content(block)]


def lines(text: str) -> list[str]:
    """List the lines that are not empty."""
    return [line for line in text.splitlines() if line.strip()]


def bullets(text: str) -> list[str]:
    """List items that start with `-`, `*`, `+` or `•`."""
    return [line for line in lines(text) if _BULLET.match(line) and has_content(line.strip(" \t-*+•–"))]


def numbered_items(text: str) -> list[str]:
    """List items that start with a number: `1. `, `1) ` or `1、`."""
    return [line for line in lines(text) if _NUMBERED.match(line)]


def headings(text: str) -> list[str]:
    """List Markdown headings (`# …` to `###### …`)."""
    return [line for line in lines(text) if _HEADING.match(line)]


def highlights(text: str) -> list[str]:
    """List the spans between single or double asterisks."""
    return [span for span in _HIGHLIGHT.findall(text) if has_content(span)]


def placeholders(text: str) -> list[str]:
    """List the spans in square brackets that hold a letter, such as `[name]`; links are none."""
    return [span for span in _BRACKETED.findall(text) if any(c.isalpha() for c in span)]


def capital_words(text: str) -> list[str]:
    """List the words of at least two letters, all of them capitals."""
    return [word for word in words(text) if len(word) > 1 and word.isupper()]


#: What can be counted, by the name that people give it.
COUNTED: dict[str, Callable[[str], Sized]] = {
    "words": words,
    "sentences": sentences,
    "paragraphs": paragraphs,
    "characters": str,
    "lines": lines,
    "bullets": bullets,
    "numbered": numbered_items,
    "headings": headings,
    "highlights": highlights,
    "placeholders": placeholders,
    "capital_words": capital_words,
}
