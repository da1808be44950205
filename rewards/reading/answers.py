"""Where the final answer stands in what a model wrote, and when two answers are the same text."""

import re
from collections.abc import Iterator
from typing import TypeAlias

from posttrain.messages import without_thinking
from rewards.reading.remarks import claim, is_remark, without_remarks
from rewards.reading.text import plain_width
from rewards.reading.wording import (
    NEAR,
    SECOND_THOUGHT,
    bounded,
    box_taken_back,
    denied,
    taken_back,
)

#: Where something stands, and what is in it.
_Span: TypeAlias = tuple[int, int, str]
#: What announces an answer, by language; «the answer to … is» is read to its last «is».
_MARKED = re.compile(
    r"\b(?:(?:correct|right|best|final|appropriate) (?:options?|choices?|letters?|statements?)|answers?)\b"
    r"(?P<of>\s+(?:to|for|of)\b)?[^\n.:：=]{0,60}?(?:\b(?:is|are|be|equals)\b|[:：=])"
    r"|^[#*_ \t]*(?:final\s+)?answer[*_ \t]*$"
    r"|^####\s"
    r"|答案[^\n。:：是为為选選】]{0,10}(?:是|为|為|选|選|[:：】])"
    r"|(?:故|应|應|因此|所以|正确的?|正確的?)(?:本题|本題)?(?:选|選)(?:择|項|项)?[是为為]?"
    r"|^答\s*[:：]"
    r"|(?:答え|解答|回答|正解)[^\n。:：は]{0,20}(?:は|[:：])"
    r"|(?:정답|답변|답)(?:은|는|\s?[:：])"
    r"|\brespuestas?\b[^\n.:]{0,40}?(?:\bes\b|\bson\b|\bser\b|:)|\brespostas?\b[^\n.:]{0,40}?(?:\bé\b|:)"
    r"|\bréponses?\b[^\n.:]{0,40}?(?:\best\b|\bêtre\b|:)|\brispost[ae]\b[^\n.:]{0,40}?(?:\bè\b|:)"
    r"|\bAntwort(?:en)?\b[^\n.:]{0,40}?(?:\bist\b|\blautet\b|:)"
    r"|\bответ(?:ом)?\b[^\n.:]{0,40}?(?:[:—–]|\s-\s|\bравен\b|\bбудет\b|\bявляется\b)"
    r"|(?:الإجابة|الجواب|إجابة|جواب)[^\n.:]{0,30}?(?:هي|هو|:)|(?:उत्तर|जवाब)\s?(?:है\b)?[:：]?",
    re.IGNORECASE | re.MULTILINE,
)
#: One of these is in every announcement.
_ASCII_WORDS = (
    "answer",
    " option",
    " choice",
    " letter",
    " statement",
    "####",
    "respuesta",
    "resposta",
    "rispost",
    "antwort",
)
_WORDS = (*_ASCII_WORDS, *"réponse ответ 选 選 答 正解 답 جواب جابة उत्तर जवाब".split())
#: Announcements are looked for in the end of a text alone.
_MAX_READ = 20_000
#: Announcements before this many from the end are not looked at.
_MOST_MARKS = 20
#: The beginning of a sentence that goes on with the next announcement.
_NEXT_SENTENCE = re.compile(r"(?<=[.!?;。！？；])[^.!?;。！？；\n]{0,100}\Z")
#: What may come before an answer that nothing announces: «Result:», «I think it is».
_LEAD = re.compile(
    r"^(?:(?:(?:ok|okay|so|thus|hence|therefore|overall|finally|well|yes|in conclusion)\b[,:]? ){0,3}"
    r"(?:(?:the |my )?(?:final )?(?:result|solution|conclusion|ans|ergebnis|lösung|resultado|résultat"
    r"|результат"
    r"|cevap|đáp án|jawaban)(?: is|\s?:)|(?:it|that|this)(?:['’]s| is| would be| must be)"
    r"|(?:(?:it|this|that) )?(?:looks like|seems to be|appears to be)"
    r"|i (?:get|say|(?:think|believe|guess)(?: it is| it['’]s)?))\s|(?:ok,? so|so|thus|hence|therefore"
    r"|overall)[,:] )",
    re.IGNORECASE,
)
#: «Yes, there is a dog.», «No. It is red», «是的，有一只狗».
_YES_OR_NO = re.compile(
    r"(?P<word>yes|yeah|no|true|false|correct|incorrect|oui|non|ja|nein|sí|si|no|sim|não|sì|да|нет|نعم|لا"
    r"|हाँ|हां|नहीं|是的?|对的?|否|不是|不|はい|いいえ|네|예|아니요|아니오)"
    r"(?:[,.;!،。，、！]\s{0,3}|\s[—–-]\s|\s(?=(?:it|there|they|he|she|this|that|these|those)\b))"
    r"(?P<rest>\w.*)",
    re.IGNORECASE,
)
#: Another verdict after the first one: «Yes, no», «Yes, but no».
_SAID_AGAIN = re.compile(
    r"\b(?:yes|yeah|true|false|oui|nein|нет|да)\b|\b(?:but|yet|although|unless|if|maybe|perhaps"
    r"|possibly|probably not)\b|^(?:no|non|ja|si|sí|não|não|sim)\b|\bno\b(?=\W*$|[,.;!])"
    r"|但|不过|也许|可能|(?<!不)是的|否|でも|ただし|하지만",
    re.IGNORECASE,
)
_LAST_VERB = re.compile(r"^.*\b(?:is|are)\b\s*[:：]?\s*(?=\S)", re.IGNORECASE)
#: «this answer is helpful» announces nothing.
_SAYS_OF_IT = re.compile(
    r"\s*(?:(?:very|quite|really|definitely|also|indeed|clearly) )?(?:helpful|useful|correct|right|clear"
    r"|based|supported|derived"
    r"|obtained|consistent|because|since|found|verified|confirmed|unique|straightforward|satisfactory"
    r"|what you|to your|of help"
    r"|of use|approximate|rounded|expressed|wrong|incorrect|visible)\b(?!\s*[:：])",
    re.IGNORECASE,
)
_DETERMINED = re.compile(r"\b(?:this|that|these|those|above|hope|my|your|previous) $", re.IGNORECASE)
_FOLLOWING = re.compile(
    r"(?:as follows|the following|(?:correct|clear|therefore|thus))\s*[:：]\s*", re.IGNORECASE
)
#: What makes no claim of the announcement after it.
_DOUBTED = re.compile(
    r"\b(?:no idea|no way|nobody|no one|not sure|unsure|unclear|doubt\w*|unlikely|whether|if|unless"
    r"|impossible|wonder|deny"
    r"|(?:do|does|did)(?:n['’]t| not)"
    r"|(?:is|was)(?:n['’]t| not) (?:true|clear|certain|the case)|not (?:true|clear|certain|the case)"
    r"|cannot|can['’]t|never|which)\b"
    r"[^.,;:!?\n]*$|\b(?:wrong|incorrect|false|bad) $|(?:不认为|不確定|不确定|不知道|怀疑|如果|假如|是否"
    r"|错误的?|並非|并非)[^。，；\n]{0,10}$"
    r"|\b(?:falls|ob|si|если|не думаю, что|nicht sicher,? ob|je ne pense pas que"
    r"|no creo que)\s[^.;:\n]{0,20}$",
    re.IGNORECASE,
)
_JOINT = (
    r"(?:\\(?:q?quad|mid|lor|land|vee|wedge|cup|cap|text(?:rm|bf|it)?|mathrm|mbox|enspace"
    r"|newline)(?![A-Za-z])|\\hspace\*?\{[^{}]{0,9}\}"
    r"|[\s$.,;:|/&+~*!，；、。（）()\\{}–—-]|\b(?:and|or|also|either|alternatively|possibly|maybe|perhaps"
    r"|else|otherwise|both|vs"
    r"|versus|und|oder|ou|et|y|o|e|или|и)\b|[和或与與及]|以及|或者|还有|または|また|あるいは|[와과]|또는"
    r"|أو|و|या|और)"
)
_BETWEEN_BOXES = re.compile(rf"(?:{_JOINT}|(?<![A-Za-z])[A-Za-z](?:_\{{?\w\}}?)?\s{{0,3}}=)*+", re.IGNORECASE)
_LONGEST_JOINT = 60
_LONGEST_SENTENCE = 2000
#: A denial of the answer stands this near to its beginning.
_START = 20
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_DISPLAYS = ((re.compile(r"\$\$"), "$$"), (re.compile(r"(?<!\\)\\\["), "\\]"))
_BOLD = re.compile(r"(?<![0-9A-Za-z)\]}*])\*\*(?![\s*])([^*\n]{1,200})(?<!\s)\*\*(?![0-9A-Za-z({\[*])")
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|sc|normal)?|math(?:rm|bf|it|sf|tt)|mbox|emph"
    r"|operatorname)\*?\s{0,3}\{([^{}]*)\}"
)
_ESCAPED = re.compile(r"\\([%&#_${} ])")
_OPENED = (("\\]", "\\["), ("\\)", "\\("), ("$", "$"), ("}", "{"))
_LEADING = " \"'`*_“‘「¡¿"
_TRAILING = " \"'`*_.,;:?!。，；：？！”’」"
_ARTICLE = re.compile(r"(?:the|an|a) (?=\w{2})(?!(?:and|or)\b)")


def final_answer(text: str) -> str:
    r"""Return the answer a text ends with: the last of the first form found, "" for an empty text.

    Forms, strongest first: `<answer>…</answer>`; `\boxed{…}`; `Answer: …`, `the answer is …`, a heading
    `Answer`, `#### …`, `答案是…`, `故选…`, `答：…` and the like in ten more languages; and the last line that
    is no remark, or the formula displayed at the end. Only one answer counts, so listing many candidates
    does not pay: boxes or tags with nothing but «and», «or» or commas between them are one answer, a list.

    Remarks on the answer are taken off: «I hope this helps», «, which is even», «(see figure)», «, not A».
    Words that deny or bound it stay on («not 5», «at least 5»), so that it equals no answer without them.
    """
    return readings(text)[0]


def readings(text: str) -> list[str]:
    """Return what the final answer may be as a text; `final_answer` is the first.

    The others are the line as it stands, with its remarks, its one bold part, and «Yes» where it goes on
    with a sentence. Whoever compares whole texts may try them all, for a text with a second answer in it
    equals none of them.
    """
    line, kind = _stated(without_thinking(text))
    if kind == "exact":
        return list(dict.fromkeys((line, undressed(line))))
    told = claim(line, marked=kind != "line")
    if kind == "of":
        told = _LAST_VERB.sub("", told, count=1)
    bold = _bold(line)
    if bold and len(bold[0]) + len("****") < len(line):
        return list(dict.fromkeys((told, line, *bold, *_yes_or_no(told))))
    stopped = told[:-1] if kind != "line" and told[:-1] and told[-1] in ".。" else told
    led = _LEAD.sub("", stopped, count=1)
    return list(dict.fromkeys((told, line, *bold, undressed(told), stopped, led, *_yes_or_no(told))))


def _bold(line: str) -> list[str]:
    """Return the one bold part of a line, unless the words around it take it back."""
    bold = list(_BOLD.finditer(line)) if len(line) <= _LONGEST_SENTENCE else []
    if len(bold) != 1 or taken_back(line, bold[0].start(), bold[0].end()):
        return []
    return [bold[0][1].strip()]


def _yes_or_no(line: str) -> list[str]:
    """Return the «Yes» of «Yes, there is a dog.», unless the rest goes back on it."""
    found = _YES_OR_NO.fullmatch(line) if len(line) <= _LONGEST_SENTENCE else None
    if not found or SECOND_THOUGHT.search(found["rest"]) or _SAID_AGAIN.search(found["rest"]):
        return []
    return [found["word"], found["word"].removesuffix("的")]


def announced(text: str) -> bool:
    """Check whether a text says what its answer is, by a tag, a box or words before it."""
    return bool(_BOX.search(text) or "</answer>" in text.lower() or _marked(text[-_MAX_READ:]))


def undressed(text: str) -> str:
    r"""Return a text without the LaTeX around its words: `\text{red}` and `$42$` are red and 42."""
    if "$" not in text and "\\" not in text:
        return text
    text = _TEXT_COMMAND.sub(lambda found: found[1], text).strip()
    for opening, closing in (("$", "$"), ("\\(", "\\)")):
        inner = text[len(opening) : -len(closing)]
        if inner and text.startswith(opening) and text.endswith(closing) and opening not in inner:
            text = inner.strip()
    return _ESCAPED.sub(r"\1", text)


def normalise(text: str) -> str:
    """Spell texts alike that differ only in width, case, white space, punctuation around or an article.

    A text of punctuation alone stays as it is, so that only white space becomes "".
    """
    text = " ".join(plain_width(undressed(text)).casefold().split())
    return _ARTICLE.sub("", text.lstrip(_LEADING), count=1).rstrip(_TRAILING) or text


def _stated(text: str) -> tuple[str, str]:
    """Return the answer and what it was found by: `exact` bounds, a `mark` (`of`), or its `line`."""
    if tags := _last(text, _tags(text)):
        tagged = tags[0]
        marked = _BOX.search(tagged) or _marked(tagged) or "\n" not in tagged
        return _stated(tagged) if marked and "<answer>" not in tagged.lower() else (tagged, "exact")
    if boxes := _last(text, _boxes(text)):
        boxed, start, stop = boxes
        denied_here = box_taken_back(text, start, stop)
        return text[max(0, start - NEAR) : stop + NEAR] if denied_here else boxed, "exact"
    text = without_remarks(text)
    if found := _marked(text[-_MAX_READ:]):
        return found
    display = _display(text, from_start=False)
    return (display, "exact") if display else (_bare(text.rpartition("\n")[2]), "line")


def _marked(text: str) -> tuple[str, str] | None:
    """Return what the last announcement announces; where it denies an answer, the whole of its line."""
    lowered = text.lower()
    if not any(word in lowered for word in (_ASCII_WORDS if text.isascii() else _WORDS)):
        return None
    denying, stop = None, len(text)
    for mark in list(_MARKED.finditer(text))[: -_MOST_MARKS - 1 : -1]:
        after = text[mark.end() : stop].lstrip(" \t\n:：*_")
        if stop < len(text):
            after = _NEXT_SENTENCE.sub("", after)
        stop = mark.start()
        before = text[max(text.rfind("\n", 0, mark.start()) + 1, mark.start() - NEAR) : mark.start()]
        said_of_it = _SAYS_OF_IT.match(after) and (_DETERMINED.search(before) or _earlier(text, mark.start()))
        if not after or said_of_it:
            continue
        display = _display(after, from_start=True)
        line = display or _closed(_bare(_FOLLOWING.sub("", after.partition("\n")[0], count=1)))
        if denied(mark[0]) or bounded(mark[0]) or _DOUBTED.search(before):
            told = claim(f"{before}{mark[0]} {line}", marked=False)
            if denied(before + mark[0]) and not (denied(told) or bounded(told)):
                return told, "exact"  # «the answer is not A, but B»
            denying = denying or before + mark[0] + " " + line
        elif denied(claim(line, marked=True)[:_START]):
            denying = denying or line
        elif denying is not None and normalise(claim(line, marked=True)) in normalise(denying):
            break
        elif line:
            return line, "exact" if display else "of" if mark["of"] else "mark"
    return (denying, "exact") if denying is not None else None


def _earlier(text: str, stop: int) -> bool:
    """Check whether something is announced before this place."""
    return any(
        not is_remark(text[mark.start() : mark.start() + NEAR]) for mark in _MARKED.finditer(text, 0, stop)
    )


def _bare(line: str) -> str:
    """Return the line without white space, and without the end of a mark that began before it."""
    head, _, tail = line.rpartition("**") if line.count("**") % 2 else (line, "", "")
    return (head + tail).strip()


def _closed(line: str) -> str:
    """Return the line without the ends of what began before it, as the last sign of `$Answer: 5$`."""
    for closing, opening in _OPENED * 2:
        unopened = (
            line.count(opening) % 2 if closing == opening else line.count(closing) > line.count(opening)
        )
        if unopened and line.endswith(closing):
            line = line[: -len(closing)].rstrip()
    return line


def _tags(text: str) -> Iterator[_Span]:
    """Yield where each `<answer>…</answer>` stands and what is in it, from the last on."""
    lower = text.lower() if text.isascii() else text
    stop = len(lower)
    while (end := lower.rfind("</answer>", 0, stop)) >= 0:
        stop = lower.rfind("<answer>", 0, end)
        if stop < 0:
            return
        yield stop, end + len("</answer>"), text[stop + len("<answer>") : end].strip()


def _boxes(text: str) -> Iterator[_Span]:
    r"""Yield where each `\boxed{…}` stands and what is in it, braces balanced, from the last on."""
    following = len(text)
    for box in reversed(list(_BOX.finditer(text))):
        end = _closing_brace(text, box.end(), following)
        if end is None:
            return
        yield box.start(), end + 1, text[box.end() : end].strip()
        following = box.start()


def _last(text: str, found: Iterator[_Span]) -> tuple[str, int, int] | None:
    """Return what the last run of tags or boxes holds, as one list, and where the run starts and stops."""
    parts: list[str] = []
    first = last = len(text)
    for start, stop, inner in found:
        if parts and not _joined(text, stop, first):
            break
        last = last if parts else stop
        first = start
        parts.append(inner)
    return (", ".join(reversed(parts)), first, last) if parts else None


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
