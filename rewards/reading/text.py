"""Text that was read off an image: what counts as the same, and how markup is made safe to parse."""

import re
import unicodedata

from posttrain.messages import without_thinking

#: Answers beyond this are not read: a full page has about 5,000 characters.
MAX_LENGTH = 100_000
#: Marks on one letter that are kept, as in Unicode's Stream-Safe Text Format (UAX #15).
MAX_MARKS = 30

#: Soft hyphen, zero-width characters, directions of writing, variation selectors, byte order mark.
_INVISIBLE = dict.fromkeys(
    (
        *(0xAD, 0x34F, 0x61C, 0x180E, 0xFEFF),
        *range(0x200B, 0x2010),
        *range(0x202A, 0x202F),
        *range(0x2060, 0x2070),
        *range(0xFE00, 0xFE10),
    )
)
#: Chinese and Japanese writing; Korean has spaces between its words.
_CJK = "\u3001-\u312f\u3190-\u9fff\uf900-\ufaff\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f"
_SPACE_IN_CJK = re.compile(f"(?<=[{_CJK}]) (?=[{_CJK}])")

_FORMS = {
    chr(code): unicodedata.decomposition(chr(code))
    for code in (*range(0x80, 0x3400), *range(0xA600, 0xAC00), *range(0x10700, 0x10800))
}
#: Raised and lowered characters; letters raised in words (Nº, ™) are only an ornament there.
RAISED, LOWERED = (
    "".join(c for c, form in _FORMS.items() if form.startswith(tag) and c not in "™℠ªº")
    for tag in ("<super>", "<sub>")
)
#: ㎡ is m² in one character, ½ a fraction.
_SQUARED = {
    ord(c): "".join(chr(int(code, 16)) for code in form.split()[1:])
    for c, form in _FORMS.items()
    if form.startswith("<square>") and re.search("00B[23]", form)
}
_FRACTION = re.compile("[" + "".join(c for c, form in _FORMS.items() if form.startswith("<fraction>")) + "]")
_SLASHES = dict.fromkeys(map(ord, "⁄∕"), "/")
#: H₂O is H2O, but log₂8 is not log28.
_INDEX = re.compile(f"(?<![\\d{LOWERED}])(?<=[^\\W_]|\\))[{LOWERED}]+(?!\\d)")
_KEPT = re.compile(f"([{RAISED}{LOWERED}]|(?<=\\d)[ªº①-⓿])")

_HIDDEN = tuple(
    (re.compile(opening, re.IGNORECASE), re.compile(closing, re.IGNORECASE))
    for opening, closing in (("<!--", "-->"), ("<style", "</style>"), ("<script", "</script>"))
)
_STRAY_BRACKET = re.compile(r"<(?!/?[A-Za-z][^<>]{0,1000}>)")
_DECLARATION = re.compile(r"<[!?][^<>]{0,1000}>")


def clean(text: str) -> str:
    """Spell texts alike that look the same on paper.

    Invisible characters are removed, white space becomes single spaces (none between two Chinese or
    Japanese characters, where a line break means nothing), and full-width forms become ordinary ones.
    """
    text = " ".join(text.translate(_INVISIBLE).split())
    if text.isascii():
        return text
    return " ".join(plain_width(_SPACE_IN_CJK.sub("", text)).split())


def plain_width(text: str) -> str:
    """Fold full-width and other forms of characters into plain ones, as NFKC does, but change no value.

    NFKC alone makes 102 of 10² and 11/2 of 1½. Here raised characters stay as they are, lowered ones too
    beside a digit, a fraction keeps its distance from a whole number (1 1/2), and ㎡ becomes m².
    """
    if text.isascii():
        return text
    text = _FRACTION.sub(_spelled_fraction, _few_marks(text).translate(_SQUARED))
    parts = _KEPT.split(_INDEX.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text))
    parts[::2] = [unicodedata.normalize("NFKC", part) for part in parts[::2]]
    return "".join(parts).translate(_SLASHES)


def _spelled_fraction(found: re.Match[str]) -> str:
    whole = found.string[: found.start()][-1:].isdigit()
    return " " * whole + unicodedata.normalize("NFKC", found[0])


def transcript(text: str) -> str:
    """Return what a model transcribed: its last `<answer>…</answer>`, else all after the thinking.

    A code fence around it is taken off.
    """
    text = without_thinking(text)
    inner, closed, _ = text.rpartition("</answer>")
    if closed and "<answer>" in inner:
        text = inner.rpartition("<answer>")[2].strip()
    if text.startswith("```"):
        text = text.partition("\n")[2].strip().removesuffix("```")
    return text.strip()


def safe_html(html: str) -> str:
    """Make HTML such that `html.parser` reads it in linear time.

    Comments, declarations, styles and scripts are removed, and every `<` that opens no complete tag is
    escaped: the parser would search the whole rest of the text again after each of them.
    """
    for opening, closing in _HIDDEN:
        html = _without_spans(html, opening, closing)
    return _STRAY_BRACKET.sub("&lt;", _DECLARATION.sub("", html))


def _without_spans(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str:
    """Remove all from `opening` to `closing`, in linear time; an unclosed one stays."""
    kept, position = [], 0
    while (start := opening.search(text, position)) and (end := closing.search(text, start.end())):
        kept.append(text[position : start.start()])
        position = end.end()
    return "".join(kept) + text[position:]


def _few_marks(text: str) -> str:
    """Keep at most `MAX_MARKS` combining marks in a row: sorting them costs NFKC quadratic time."""
    run, kept = 0, []
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= MAX_MARKS:
            kept.append(character)
    return "".join(kept)
