"""Remarks around an answer, which are neither part of it nor another one."""

import re

from rewards.reading.wording import NEAR, SECOND_THOUGHT, denied

#: Lines and sentences taken off the end of one text.
_MOST_REMARKS = 20
_LONGEST_REMARK = 400
#: What people say when they are done; nothing in it changes the answer.
_POLITE = re.compile(
    r"\W{0,4}(?:(?:i |we |hope)?hope(?:fully)?\b|let me know|feel free|if you(?: (?:have|need|want|would"
    r"|like|are)|['’]d)\b"
    r"|please (?:let|feel|ask|tell)|thanks?\b(?! to)|thank you|(?:i['’]?m |i am )?(?:happy|glad) to"
    r"|would you like|do you (?:have|need|want)"
    r"|is there anything|good luck|have a (?:nice|great|good)|(?:best|kind|warm) (?:regards|wishes)"
    r"|sincerely\b|cheers\b"
    r"|you['’]re welcome|you are welcome|q\.?\s?e\.?\s?d\b|great question|any (?:other |more )?questions"
    r"|don['’]t hesitate"
    r"|希望|如有|如需|如果(?:你|您|还)|若有|若您|请(?:告诉|随时|问|让|不要犹豫)|谢谢|感谢|祝|欢迎|有(?:任何"
    r"|其他)|还有(?:什么|其他|问题)"
    r"|お役に立|ご参考|何か|ご質問|他に|よろしく|ありがとう|참고|도움이|궁금|질문|추가|감사|언제든"
    r"|j['’]espère|n['’]hésite|si (?:vous|tu)\b|merci\b|bonne (?:chance|journée)|ich hoffe"
    r"|lass(?:en sie)?\b|falls\b"
    r"|bei (?:weiteren )?fragen|viel (?:erfolg|glück)|danke|wenn (?:du|sie)\b|¿|espero\b|si (?:tiene"
    r"|necesit|quiere|desea|hay)"
    r"|no dud|gracias|¡|avís|надеюсь|если (?:у|вам|вы|ты)\b|обращ|спасибо|удачи|дайте"
    r"|آمل|أتمنى|إذا كان|شكر|لا تتردد|आशा|यदि|अगर|धन्यवाद|कृपया|उम्मीद)",
    re.IGNORECASE,
)
#: What explains an answer that has been given.
_NOTE = re.compile(
    r"\W{0,4}(?:done\W{0,3}$|(?:and |so )?(?:that|this) is (?:it|all|(?:our|the|my) (?:final )?answer)\b"
    r"|(?:your|the|an?) (?:ai )?(?:assistant|helper|model)\W{0,3}$|(?:please )?note\b|n\.?b\.|remarks?\b"
    r"|disclaimer|confidence\b|explanations?\b\W"
    r"|reasons?\b\W|reasoning\b\W"
    r"|rationale\b|justification\b|sources?\b\W|caveat|assumptions?\b|(?:all )?(?:this|these|the above)\b"
    r" (?:answers?|results?|values?|conclusions?|follows?|matches|comes|agrees|confirms|completes"
    r"|solutions?|choices?"
    r"|(?:is|are|was|were|can be|has been) (?:because|based|due|correct|consistent|supported|derived"
    r"|obtained|final|evident|clear"
    r"|shown|seen|verified|confirmed|determined|my final|the (?:final|correct|right) (?:answer|choice"
    r"|result)))\b"
    r"|that(?:['’]s| is) (?:it|all|because|why|how|the answer|my (?:final )?answer)\b"
    r"|(?:(?:therefore|thus|hence|so|and|with this|now)\b,? )?(?:the |this |our |that )?(?:question"
    r"|problem|task|puzzle|proof"
    r"|exercise)\b (?:is|has been|was) (?:now |thus |hence |therefore |completely |fully )?(?:solved"
    r"|answered|complete|completed|done|finished"
    r"|resolved|proved|proven)\b|it (?:follows|matches|is (?:consistent|clear|based))\b|as (?:shown|seen"
    r"|can be seen|requested|you)\b"
    r"|see (?:the|figure|fig|above|image|page)\b|based on\b|because\b|i(?:['’]m"
    r"| am) (?:\d{1,3}\s?% )?(?:confident|sure|certain|fairly|quite|very)\b"
    r"|the answer (?:is|was) (?:based|derived|obtained|found|supported|correct|consistent|verified|final"
    r"|clear)\b"
    r"|my answer is (?:based|final|correct)\b"
    r"|注[:：意]|备注|说明[:：]|解释[:：]|理由[:：是]|以上|因为|由于|原因|因此[^\n]{0,6}题|补充|解析|補足"
    r"|説明|설명|이유|참고"
    r"|remarque\b|explication\b|hinweis\b|anmerkung\b|erklärung\b|begründung\b|nota\b|explicación\b"
    r"|примечание|объяснение|пояснение"
    r"|ملاحظة|الشرح|شرح|नोट|व्याख्या)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])['\"”’)*_]{0,3}\s+|(?<=[。！？])\s*(?=\S)")
_ORNAMENT = re.compile("[\\s\\-*_=~`#☀-➿️‍\U0001f000-\U0001faff]+")
_QED = re.compile(r"\sQ\.?E\.?D\.?$")
#: ", which is even", " because it is red": what only a clause adds.
_CLAUSE = re.compile(
    r"(?:,|;|\s[—–-]|\s?—)\s{0,3}(?:which|where|because|since|as (?:shown|seen|it|the|this|can|we|you|in)"
    r"|that is|i\.e\.|making|given"
    r"|based|according|while|though|although|considering|assuming|meaning|rounded)\b"
    r"|;\s(?:this|that|it|which)\b|,\s(?:right|correct|okay|ok)\?|\s(?:because|according to|based on"
    r"|as (?:shown|seen|can be seen|indicated|it (?:is|has|shows))"
    r"|since (?:it|the|this|we|they|there)"
    r"|I hope (?:it|this|that))\b"
    r"|[,，；;]\s{0,3}(?:因为|由于|也就是|理由|依据|根据|如图|なぜなら|왜냐하면|car\b|parce que\b|weil\b"
    r"|denn\b|porque\b"
    r"|так как|потому что|لأن|क्योंकि)",
    re.IGNORECASE,
)
#: ", so it is even", after an answer that has been announced.
_CONSEQUENCE = re.compile(r"[,;]\s{0,3}(?:so|hence|thus|therefore)\b|[，；]\s?(?:因此|所以)", re.IGNORECASE)
_ASIDE = re.compile(r"(?<=\S)\s?[(（](?!mod\b)([^()（）]{3,200})[)）]\W{0,3}$")
_WORDS = re.compile(r"[^\W\d_]{2,}[^\S\n]+[^\W_]+|[\u3040-\u30ff\u4e00-\u9fff]{3}")
#: «not A» after «B», as in «B, not A», «B. It cannot be A».
_NOT_ANOTHER = re.compile(
    r"(?:[,;.。，；、]|\s[—–-]|\s?[(（—])\s{0,3}(?:(?:and|so|which|it|this|that|they|there|is|are|was|而"
    r"|并|也)\b[ ]?){0,4}"
    r"(?:['’]s )?(?:definitely |certainly |clearly )?(?:not\b|can['’]?t\b|cannot\b|isn['’]t\b|wasn['’]t\b"
    r"|aren['’]t\b|never\b"
    r"|而?不是|并非|不可能是|ではな|nicht\b|pas\b|no es\b|не\b|não é\b|non è\b|ليس|नहीं)"
    r"(?! (?:be |the )?(?:right|correct|true|answer|so|sure|certain|it)\b)",
    re.IGNORECASE,
)
_OR_ANOTHER = re.compile(r"(?:\bor\b|或)\s?(?:\([A-Z]\)|[A-Z][.):]\s?\S)")
_BUT = re.compile(
    r"(?:\bbut(?: rather| instead)?(?: is| it is| it['’]s)?|\brather(?! than)|[,;.]\s{0,3}(?:it['’]s|it is"
    r"|they are|instead,?)"
    r"|[,;.]\s{0,3}(?:so|hence|thus|therefore)(?: it['’]s| it is| it must be)?"
    r"|而是|应该?是|應該?是|[，。；]\s?是|ではなく、?|가? ?아니라|\bsondern\b|\bsino(?: que)?\b|\bmais\b"
    r"|\bа(?=\s))\s{0,3}[:：]?\s{0,3}(?=\S)",
    re.IGNORECASE,
)
_COPULA = re.compile(
    r"(?:です|である|だ|になります|となります|입니다|이다|예요|이에요|\s(?:है|हैं))[\s.。।!！]{0,3}$"
)


def without_remarks(text: str) -> str:
    """Return a text without the lines and sentences at its end that only remark on the answer before them.

    A text of remarks alone stays as it is.
    """
    kept = text.rstrip()
    for _ in range(_MOST_REMARKS):
        head, _, line = kept.rpartition("\n")
        if head and (_ORNAMENT.fullmatch(line) or is_remark(line)):
            kept = head.rstrip()
            continue
        cut = _remark_in(line)
        if cut is None:
            break
        kept = (head + "\n" if head else "") + line[:cut].rstrip()
    return kept if kept.strip() else text


def is_remark(text: str) -> bool:
    """Check whether a line or sentence only remarks on an answer that stands elsewhere."""
    if len(text) > _LONGEST_REMARK or "$" in text or "\\" in text:
        return False
    if _POLITE.match(text):
        return not any(c.isdigit() for c in text)
    return bool(_NOTE.match(text)) and not SECOND_THOUGHT.search(text)


def claim(line: str, *, marked: bool) -> str:
    """Return the answer in a line without what is said about it.

    Taken off are «, which is even», «(see the figure)», «, not A» and, of a line that an `Answer:` stood
    before, its further sentences. What gives another answer («or B») or takes the answer back stays on.
    """
    text = _unadorned(line)
    if denied(text):
        text = _contrasted(text)
    for pattern in (_NOT_ANOTHER, _CLAUSE, *((_CONSEQUENCE, _SENTENCE_END) if marked else ()), _ASIDE):
        found = pattern.search(text[: 4 * _LONGEST_REMARK])
        if found and found.start() and _is_aside(pattern, text, found):
            text = text[: found.start()].rstrip()
    return _COPULA.sub("", text) or text


def _unadorned(line: str) -> str:
    """Return a line without pictures, white space or Q.E.D. around it; one of pictures alone as it is."""
    text = _QED.sub("", line)
    if text[-1:] in (".", "。") and _is_picture(text[-2:-1] or "."):
        text = text[:-1]
    first, stop = 0, len(text)
    while first < stop and _is_picture(text[first]):
        first += 1
    while stop > first and _is_picture(text[stop - 1]):
        stop -= 1
    return text[first:stop] or line


def _is_picture(character: str) -> bool:
    shown = "\u2600" <= character <= "\u27bf" or "\U0001f300" <= character <= "\U0001faff"
    return shown or character in "\ufe0f\u200d" or character.isspace()


def _is_aside(pattern: re.Pattern[str], text: str, found: re.Match[str]) -> bool:
    """Check that what would be cut off is a remark and leaves an answer."""
    head, rest = text[: found.start()], text[found.start() :]
    if denied(head) or not any(c.isalnum() for c in head):
        return False
    if pattern is _NOT_ANOTHER:
        return not _OR_ANOTHER.search(rest)
    if pattern is _SENTENCE_END:
        rest = text[found.end() :]
        if re.search(r"(?:^|[\s.(])(?:[A-Za-z]|St|Mr|Mrs|Ms|Dr|No|vs|Mt|Prof|Fig|approx|Jr|Sr)\.$", head):
            return False
    if pattern is _ASIDE:
        rest = found[1]
    return bool(_WORDS.search(rest)) and not SECOND_THOUGHT.search(rest[: 2 * NEAR])


def _contrasted(text: str) -> str:
    """Return «6» of «not 5 but 6»; the text itself where there is no such contrast."""
    for found in _BUT.finditer(text[: 4 * _LONGEST_REMARK]):
        tail = text[found.end() :]
        if denied(text[: found.start()]) and not denied(tail):
            return tail
    return text


def _remark_in(line: str) -> int | None:
    """Return where the last sentence of a line begins, if it is a remark."""
    first = max(0, len(line) - _LONGEST_REMARK)
    starts = [found.end() for found in _SENTENCE_END.finditer(line, first)]
    return starts[-1] if starts and starts[-1] < len(line) and is_remark(line[starts[-1] :]) else None
