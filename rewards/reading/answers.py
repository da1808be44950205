"""Where the final answer stands in what a model wrote, and when two answers are the same text."""

import re

from posttrain.messages import without_thinking
from rewards.reading.text import plain_width

_MARKED = re.compile(
    r"\banswers?\b[^\n.:：=]{0,60}?(?:\b(?:is|are|be|equals)\b|[:：=])"
    r"|^[#*_ \t]*(?:final\s+)?answer[*_ \t]*$"
    r"|^####\s"
    r"|答案[^\n。:：是为选】]{0,10}(?:是|为|选|[:：】])"
    r"|(?:故|应|因此|所以|正确的?)(?:本题)?选(?:择|项)?[是为]?"
    r"|^答\s*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_BETWEEN_BOXES = re.compile(
    r"[\s$.,;，；、()\\]*(?:and|or|和|或|与)?[\s$,]*(?:[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?", re.IGNORECASE
)
_LONGEST_JOINT = 40
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_DISPLAYS = ((re.compile(r"\$\$"), "$$"), (re.compile(r"(?<!\\)\\\["), "\\]"))
_LEADING = " \"'`*_“‘「"
_TRAILING = " \"'`*_.,;:?。，；：？”’」"


def final_answer(text: str) -> str:
    r"""Return the answer a text ends with: the last of the first form found, "" for an empty text.

    Forms, strongest first: `<answer>…</answer>`; `\boxed{…}`; `Answer: …`, `the answer is …`, a heading
    `Answer`, `#### …`, `答案是…`, `故选…`, `答：…`; and the last line that is not empty, or the formula
    displayed at the end. Only one answer counts, so listing many candidates does not pay: boxes with
    nothing but «and», «or» or commas between them are one answer, a list.
    """
    text = without_thinking(text)
    if (tagged := _last_tagged(text)) is not None:
        return final_answer(tagged) if _BOX.search(tagged) else tagged
    if (boxed := _last_boxed(text)) is not None:
        return boxed
    marks = list(_MARKED.finditer(text))
    if marks and (marked := text[marks[-1].end() :].lstrip(" \t\n:：*_")):
        return _display(marked, from_start=True) or _bare(marked.partition("\n")[0])
    lines = text.rsplit("\n", 1)
    return _display(text, from_start=False) or _bare(lines[-1])


def normalise(text: str) -> str:
    """Spell texts alike that differ only in width, case, white space or surrounding punctuation.

    A text of punctuation alone stays as it is, so that only white space becomes "".
    """
    text = " ".join(plain_width(text).casefold().split())
    return text.lstrip(_LEADING).rstrip(_TRAILING) or text


def _bare(line: str) -> str:
    """Return the line without white space, and without the end of an emphasis that began before it."""
    head, _, tail = line.rpartition("**") if line.count("**") % 2 else (line, "", "")
    return (head + tail).strip()


def _last_tagged(text: str) -> str | None:
    lower = text.lower() if text.isascii() else text
    end = lower.rfind("</answer>")
    start = lower.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() if start >= 0 else None


def _last_boxed(text: str) -> str | None:
    r"""Return what the last run of `\boxed{…}` holds, braces balanced; None where its end is missing."""
    found: list[str] = []
    following = len(text)
    for box in reversed(list(_BOX.finditer(text))):
        end = _closing_brace(text, box.end(), following)
        if end is None or (found and not _joined(text, end + 1, following)):
            break
        found.insert(0, text[box.end() : end].strip())
        following = box.start()
    return ", ".join(found) if found else None


def _joined(text: str, start: int, stop: int) -> bool:
    """Check whether two boxes with this between them are one list."""
    return stop - start <= _LONGEST_JOINT and _BETWEEN_BOXES.fullmatch(text, start, stop) is not None


def _closing_brace(text: str, start: int, stop: int) -> int | None:
    """Find where the brace that opens before `start` closes, if that is before `stop`."""
    depth = 1
    for index in range(start, stop):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return index
    return None


def _display(text: str, *, from_start: bool) -> str:
    """Return the displayed formula that the text starts or ends with, or ""."""
    for opening, closing in _DISPLAYS:
        if from_start and opening.match(text):
            end = text.find(closing, 2)
            return text[2:end].strip() if end > 0 else ""
        if not from_start and text.endswith(closing):
            starts = [found.end() for found in opening.finditer(text, 0, len(text) - 2)]
            return text[starts[-1] : -2].strip() if starts else ""
    return ""
