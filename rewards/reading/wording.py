"""What the words around an answer do to it: deny it, only bound it, take it back, or merely remark on it.

English, Chinese, Japanese, Korean, French, German, Spanish, Portuguese, Italian, Russian, Arabic, Hindi. All
patterns are bounded and are tried on short pieces, so that reading takes time linear in the text.
"""

import re

#: Of a long line only this much is looked at on either side of an answer.
NEAR = 120
_ADJACENT = 40

_DENIAL_WORDS = (
    r"\bnot\b(?! only| just| merely)|\bnever\b|\bcannot\b|\bneither\b|\bnor\b|\bhardly\b|n['’]t\b|\b(?:is"
    r"|ca|does|was)nt\b"
    r"|\bno (?:idea|longer|way)\b|\bdoubt\w*|\bunlikely\b|\bunsure\b|\bunclear\b|\bnobody\b|\bno one\b"
    r"|\bexclud(?:e[sd]?|ing)\b|\beliminat(?:e[sd]?|ing)\b"
    r"|\breject(?:s|ed|ing)?\b|\bcontrary to\b|\bjamás\b|不认为|不覺得|不觉得|怀疑|\b(?:wrong"
    r"|incorrect)\s?[:：]|^\W{0,3}(?:is|was|could"
    r"|can|would) (?:it|that|this)\b|\bwhether\b|^\W{0,3}if\b"
    r"|\b(?:wrong|incorrect|false|bad) (?:answer|option|choice)s?\b|\b(?:any|every)thing but\b|\bnone of\b"
    r"|\bother than\b|\brather than\b|\binstead of\b|\bexcept\b|\bfar from\b|\b(?:rules?|ruled) out\b"
    r"|\bdiffers? from\b|\bdifferent from\b|\b(?:un|dis)equal to\b"
    r"|≠|!=|\\neq?(?![A-Za-z])|\\not(?![A-Za-z])"
    r"|不是|不等|不会|不會|不可能|不能|不应|不應|不该|不為|不为|不在|不对|不對|不选|不選|没有|沒有|并非"
    r"|並非|绝非|而非|未必|不一定"
    r"|别选|排除"
    r"|ではな|ではあり|じゃな|じゃあり|でない|とは限ら|아니|아닙|아님|않|없"
    r"|\bn['’](?:est|a|ont|était)\b|\bne (?:peut|peuvent|sont|serait|vaut|doit|sera|fait)\b|\bpas\b"
    r"|\bjamais\b|\bni\b"
    r"|\bnicht\b|\bkeine?[nmrs]?\b|\bniemals\b|\bweder\b"
    r"|\bno (?:es|son|puede|pueden|era|será|debe|vale|sea|está|fue)\b|\bnunca\b|\btampoco\b|\bnão\b"
    r"|\bnon\b(?!-)"
    r"|\bне\b|\bни\b|\bникогда\b|\bнельзя\b|ليس|لا يمكن|لا يساوي|لا تساوي|(?<!\S)لن |(?<!\S)لم |नहीं"
)
_DENIAL = re.compile(_DENIAL_WORDS, re.IGNORECASE)
_BOUND_WORDS = (
    r"\bat (?:the )?(?:very )?(?:least|most)|\b(?:no|not) (?:more|less|fewer|greater|larger|smaller|higher"
    r"|lower) than"
    r"|\b(?:more|less|fewer|greater|larger|smaller|bigger|higher|lower|older|younger|longer|shorter|taller"
    r"|heavier"
    r"|lighter|better|worse|earlier|later) than(?: or equal to)?|\b(?:up|prior) to|\b(?:over|under|above"
    r"|below|beyond"
    r"|nearly|almost|within|before|after|past)|\bexceed(?:s|ing)?|\b(?:a |the )?(?:lower"
    r"|upper) bound (?:is|of)"
    r"|\b(?:a |the )?(?:minimum|maximum) of|\bas (?:many|much|few|little) as|\bupwards? of"
    r"|[<>≤≥≦≧⩽⩾≲≳]|\\(?:leq?|geq?|lt|gt|leqslant|geqslant|ll|gg)(?![A-Za-z])|[<>]="
    r"|(?:至少|至多|最多|最少|不少于|不多于|不超过|不到|不足|不低于|不高于|不小于|不大于|不止|起码|超过"
    r"|大于|小于|多于|少于|高于"
    r"|低于|将近|接近|近乎|超過|大於|小於|不超過|少于等于)(?:或等于|等于|或等於|了)?"
    r"|少なくとも|多くとも|最大でも?|最低でも?|최소한?|최대|적어도|많아야"
    r"|\bau (?:moins|plus|minimum|maximum)|\b(?:plus|moins) de|\b(?:supérieure?"
    r"|inférieure?)(?: ou égale?)? à|\bjusqu['’]à"
    r"|\bpresque|\bmindestens|\bhöchstens|\b(?:mehr|weniger|größer|kleiner) als|\b(?:größer"
    r"|kleiner)(?: oder)? gleich"
    r"|\bbis zu|\bfast|\bmaximal|\bminimal|\büber|\bunter"
    r"|\b(?:al|por lo) menos|\bcomo (?:máximo|mínimo|mucho)|\b(?:más|menos) de|\b(?:mayor"
    r"|menor)(?:es)?(?: o igual)? (?:que|a|de)"
    r"|\bhasta|\bcasi|\bpelo menos|\bno máximo|\bmais de|\b(?:maior|menor) (?:do )?que|\balmeno"
    r"|\bal massimo|\b(?:più|meno) di"
    r"|\b(?:не )?(?:менее|более|меньше|больше)(?: чем)?|\bкак минимум|\bпо крайней мере|\bмаксимум"
    r"|\bминимум|\bпочти|\bсвыше"
    r"|على الأقل|على الأكثر|(?:أكثر|أقل|أكبر|أصغر) من|لا (?:يقل|تقل|يزيد|تزيد) عن|कम से कम|अधिक से अधिक"
    r"|ज़्यादा से ज़्यादा"
)
_BOUND_BEFORE = re.compile(
    rf"(?:\b(?:min|max)(?:imum)?\.?\s{{1,3}}|\b(?:sous|moins que)\s"
    rf"|(?:{_BOUND_WORDS})\s{{0,3}}[:：]?\s{{0,3}}(?:[是为有]|(?:is|was|are|es|est|ist)\s)?)"
    rf"(?:(?:about|exactly|only|just|some|the|another|approximately|number)\s)?"
    r"\s{0,3}[$(\\\[*\"'“‘`]{0,4}\s{0,3}$",
    re.IGNORECASE,
)
_SURE_BOUND = re.compile(
    r"\bat (?:least|most)\b|至少|至多|最多|最少|不少于|不超过|超过|大于|小于|少なくとも|최소|최대"
    r"|\bmindestens\b|\bhöchstens\b|\bau (?:moins|plus)\b"
    r"|\bal menos\b|\bcomo máximo\b|\balmeno\b|\bpelo menos\b|не (?:менее|более)|على الأقل|कम से कम",
    re.IGNORECASE,
)
_UNIT = r"(?:\s{0,2}[A-Za-z°%]{1,12}\b){0,2}\s{0,2}"
_BOUND_AFTER = re.compile(
    rf"{_UNIT}(?:(?:\bor|\band) (?:more|less|fewer|greater|above|below|over|under|higher|lower|larger"
    rf"|smaller|up|beyond)\b"
    r"|\bat (?:the )?(?:very )?(?:least|most)\b|\b(?:minimum|maximum)\b)"
    r"|\s{0,2}(?:\+(?!\s{0,3}[\w\\({$-])|[个個人只条件本張张匹つ개명\s]{0,2}(?:以上|以下|以内|未満|未满"
    r"|より|이상|이하|미만|초과|보다)|[几幾余餘来來多数數여]\s?(?=[个個人只条件本張张匹辆名岁年元块天次位개명마]|\W*$))"
    r"|\s{0,2}से (?:अधिक|कम|ज़्यादा|ज्यादा)",
    re.IGNORECASE,
)
_SURELY = (
    r"(?:(?:definitely|clearly|obviously|certainly|simply|also|just|completely|plainly|surely|probably"
    r"|all) )?"
)
_WRONG_AFTER = re.compile(
    r"[*\"'”’`$)\]\s}]{0,5},?\s{0,2}(?:"
    rf"(?:(?:is|are|was|were|would be|will be|must be|seems|looks) )?{_SURELY}"
    r"(?:(?:a|the) )?(?:wrong|incorrect|false|mistaken|impossible|invalid|untrue|ruled out|excluded"
    r"|eliminated"
    r"|out of the question|not|never|neither)\b(?! only)"
    r"|(?:does|do|did|will|would|can|could|may|might|should|must) not\b|\?\W{0,3}(?:no|nope|non|nein|нет"
    r"|不|いいえ|아니)(?:\b|是|对)"
    r"|(?:is|are|was|were|does|do|did|ca|could|would|should|must|wo|has|ai)n['’]t\b|cannot\b|can (?:not"
    r"|never)\b"
    r"|(?:这个?|该)?(?:答案|选项)?(?:是|显然|肯定|明显|都|也|并)?(?:不是|不对|不正确|错|錯|不成立|不可能"
    r"|不行|有误|排除|可以排除)"
    r"|[\w°]{0,6}?(?:では|じゃ|で)(?:な|あり)|は(?:間違|誤|違|不正解|正しくな)|[이가은는]?\s?(?:아니|아닙"
    r"|아님|틀|오답)"
    r"|est (?:fausse?|incorrecte?|erronée?|exclue?)\b|n['’]est\b|ne (?:peut|convient)\b|ist (?:falsch"
    r"|nicht|inkorrekt|unmöglich)\b"
    r"|es (?:incorrect[oa]|fals[oa]|erróne[oa])\b|no (?:es|puede|sirve)\b|está errad[oa]\b|não é\b"
    r"|è (?:sbagliat|errat)[oa]\b|non è\b"
    r"|[—–-]?\s?(?:это )?(?:неверн|неправильн|ошибочн|не )|خطأ|غير صحيح|ليس|(?:ग़लत|गलत|नहीं))",
    re.IGNORECASE,
)
#: What takes an answer back, or gives another beside it.
SECOND_THOUGHT = re.compile(
    r"^\W*(?:or|ou|oder|o|или|或|または|또는)\b|\b(?:alternatively|could (?:also |well )?be|might (?:also "
    r"|well )?be|may (?:also |well )?be"
    r"|wrong|incorrect|mistaken?|wait|actually|correction|instead|sorry|however|scratch that"
    r"|on second thought|another answer)\b"
    r"|\b(?:this|that|it|answer)\b[^.\n]{0,20}(?:\bnot\b|n['’]t\b|\bfalse\b)|也可能|也可以是|不对|等等"
    r"|更正|错了|或者",
    re.IGNORECASE,
)
_RETRACTED = re.compile(
    r"\b(?:no,? )?wait\b|\bactually\b|\bscratch that|\bcorrection\b|\bon second thought|\bsorry\b"
    r"|\bor (?:maybe|perhaps|possibly|rather)\b"
    r"|\b(?:this|that|it|which) (?:is|was|may be|might be|could be|seems|looks) (?:wrong|incorrect|false"
    r"|mistaken|not (?:right|correct|true))"
    r"|\b(?:maybe|perhaps) (?:something|another)|等等|更正|错了|或者",
    re.IGNORECASE,
)
#: What says that it may be anything else as well.
_LEFT_OPEN = re.compile(
    r"\b(?:or|maybe|perhaps|possibly) (?:(?:maybe|perhaps|possibly) )?(?:something|another|others)\b",
    re.IGNORECASE,
)
#: Where a clause ends that says nothing of what follows.
_CLAUSE_END = re.compile(
    r"(?<!\bmin)(?<!\bmax)[.;!?]\s|(?<!incorrect)(?<!wrong)(?<!wrong answer)(?<!incorrect answer):\s"
    r"|[。；：！？\n]|\b(?:so"
    r"|thus|hence|therefore|(?<!anything )(?<!everything )but)\b|所以|因此"
    r"|故|而是|但是?|sondern|\bsino\b|\bmais\b"
    r"|[,，、]\s{0,2}(?=[^\W\d_]{2})(?!(?:or|and|nor|ou|oder|und|et|o|y|или|и)\b)",
    re.IGNORECASE,
)
_BOX_DENIED = re.compile(
    rf"(?:{_DENIAL_WORDS})\s{{0,3}}(?:(?:be|is|equals?|equal to|exactly|simply|the answer|option|于"
    rf"|於)\s{{0,3}}){{0,3}}"
    r"[:：]?\s{0,3}[$(\\\[*\"'“‘`]{0,6}\s{0,3}$",
    re.IGNORECASE,
)


#: What says that an answer is not the only one.
_ALTERNATIVES = re.compile(
    r"\b(?:or|either|versus|vs|oder|entweder|ou|или|либо)\b"
    r"|\b(?:between|from)\s\D{0,3}[\d.,]{1,20}\D{0,12}\s(?:and|to)\b|或|または|あるいは|또는|혹은|\bأو\b|\bया\b|\d\s?(?:[–—~～]|\s-\s|至|到)\s?\d",
    re.IGNORECASE,
)
#: Names or numbers with nothing but commas between them.
_PIECE = r"[$£€]?[\w.%°-]{1,30}(?:\s[\w.%°-]{1,30}){0,2}"
_LIST = re.compile(
    rf"{_PIECE}(?:\s?(?:[,;、，；|]\s?(?:and\s)?|\s/\s|\sand\s)(?!\d\d\d\b){_PIECE})+", re.IGNORECASE
)


def denied(text: str) -> bool:
    """Check for a word that denies, such as «not», «isn't», «不是» or «nicht»."""
    return _DENIAL.search(text) is not None


def bounded(text: str) -> bool:
    """Check for words that bound what comes after them, such as «at least» or «至少»."""
    return _SURE_BOUND.search(text) is not None


def taken_back(text: str, start: int, stop: int) -> bool:
    """Check whether the words of its clause deny or bound what stands from `start` to `stop`."""
    before = _clause(text[max(0, start - NEAR) : start])
    after = text[stop : stop + NEAR]
    return bool(
        denied(before)
        or _BOUND_BEFORE.search(before)
        or _BOUND_AFTER.match(after)
        or _WRONG_AFTER.match(after)
        or _RETRACTED.search(after)
    )


def named_to_deny(text: str, name: str) -> bool:
    """Check whether a text has a name in it, and each time only to deny it."""
    text, name = text.casefold(), name.casefold().strip()
    places = [found.span() for found in re.finditer(re.escape(name), text)] if name else []
    return bool(places) and all(
        denied(_clause(text[max(0, start - NEAR) : start])) or _WRONG_AFTER.match(text[stop : stop + NEAR])
        for start, stop in places[:20]
    )


def box_taken_back(text: str, start: int, stop: int) -> bool:
    """Check whether the words right before a box or right after it deny it.

    A bound before it is none of them: «you need at least» may well come before the right number.
    """
    before, after = text[max(0, start - _ADJACENT) : start], text[stop : stop + NEAR]
    return bool(_BOX_DENIED.search(before) or _WRONG_AFTER.match(after))


def qualified(text: str) -> bool:
    """Check whether a text as a whole denies, bounds or leaves open what it names: it names no answer."""
    found = _DENIAL.search(text[: 4 * NEAR])
    bounded = re.match(rf"\W{{0,3}}(?:{_BOUND_WORDS})", text[:NEAR], re.IGNORECASE)
    after = re.search(rf"\S{_WRONG_AFTER.pattern}", text[-NEAR:], re.IGNORECASE)
    return bool(found or bounded or after or _LEFT_OPEN.search(text[-NEAR:]))


def one_of_several(text: str) -> bool:
    """Check whether a short text gives several answers: «4 or 5», «between 4 and 5», «Baroque, Gothic»."""
    text = text[: 4 * NEAR]
    return bool(_ALTERNATIVES.search(text) or _LIST.fullmatch(text.strip(" .。$")))


def _clause(before: str) -> str:
    """Return what belongs to the clause that this text ends in."""
    ends = [found.end() for found in _CLAUSE_END.finditer(before)]
    return before[ends[-1] :] if ends else before
