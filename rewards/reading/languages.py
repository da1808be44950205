"""Which languages a text can be in, named only where that is sure.

Writing systems are told apart by their characters, with no model. Languages that share one are told apart by
lingua's trigram models, which are loaded when first needed, and only those of the writing system seen.
"""

import functools
import re

from lingua import Language, LanguageDetector, LanguageDetectorBuilder

from posttrain.files.strict_json import JsonError, parse_json

#: Characters of each writing system.
SCRIPTS = {
    "latin": "A-Za-zªº\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "cyrillic": "\u0400-\u052f",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "kana": "\u3041-\u3096\u30a1-\u30fa\u30fc",
    "hangul": "\u1100-\u11ff\uac00-\ud7a3",
    "arabic": "\u0620-\u064a\u066e-\u06d3",
    "hebrew": "\u05d0-\u05ea",
    "devanagari": "\u0900-\u0963",
    "bengali": "\u0980-\u09ff",
    "gurmukhi": "\u0a01-\u0a7f",
    "gujarati": "\u0a81-\u0aff",
    "oriya": "\u0b01-\u0b7f",
    "tamil": "\u0b80-\u0bff",
    "telugu": "\u0c00-\u0c7f",
    "kannada": "\u0c80-\u0cff",
    "malayalam": "\u0d00-\u0d7f",
    "sinhala": "\u0d81-\u0df3",
    "thai": "\u0e01-\u0e4e",
    "lao": "\u0e81-\u0edf",
    "burmese": "\u1000-\u109f",
    "georgian": "\u10a0-\u10ff\u1c90-\u1cbf",
    "ethiopic": "\u1200-\u139f",
    "khmer": "\u1780-\u17dd",
    "armenian": "\u0531-\u0587",
}
#: The languages of each writing system that are told apart.
LANGUAGES = {
    "latin": "en de fr es it pt ca nl sv da nb fi pl cs sk hr hu ro tr vi id ms tl sw".split(),
    "cyrillic": "ru uk bg".split(),
    "greek": ["el"],
    "han": ["zh"],
    "kana": ["ja"],
    "hangul": ["ko"],
    "arabic": "ar fa ur".split(),
    "hebrew": ["he"],
    "devanagari": "hi mr ne".split(),
    "bengali": ["bn"],
    "gurmukhi": ["pa"],
    "gujarati": ["gu"],
    "oriya": ["or"],
    "tamil": ["ta"],
    "telugu": ["te"],
    "kannada": ["kn"],
    "malayalam": ["ml"],
    "sinhala": ["si"],
    "thai": ["th"],
    "lao": ["lo"],
    "burmese": ["my"],
    "georgian": ["ka"],
    "ethiopic": ["am"],
    "khmer": ["km"],
    "armenian": ["hy"],
}
CODES = frozenset(code for codes in LANGUAGES.values() for code in codes)
#: Languages too close for trigrams: where one is possible, so is the other.
_CLOSE = ({"da", "nb"}, {"id", "ms"}, {"cs", "sk"})

#: Hindi, Marathi and Nepali are told apart by small words and endings of their own: lingua has no Nepali.
_OWN_WORDS = {
    "hi": re.compile(
        "है|हैं|हूँ|था|थी|थे|में|से|और|का|की|के|ने|को|यह|वह|ये|वे|नहीं|कि|भी|पर|रहा|रही|रहे|गया|गई|जाता|वाले|लिए|इस|उस"
    ),
    "mr": re.compile(
        "आहे|आहेत|आहोत|नाही|नाहीत|होते|आणि|हा|हे|ती|मी|आम्ही|किंवा|खूप|झाला|झाली|झाले|असे|असते|तसेच|आपण|या"
        "|.+(?:च्या|मध्ये|साठी|ांना|ाचे|ाची|ाचा|तात|तात्|वर|ातील)"
    ),
    "ne": re.compile(
        "छ|छन्|छु|छौं|थियो|थिए|हो|हुन्|र|मा|को|त्यो|यी|पनि|एउटा|छैन|तर|म|हामी|गर्न|गरेको|सबै"
        "|.+(?:हरू|हरु|लाई|को|मा|ले|बाट|न्छ|न्छन्|ेको|ेका|ियो|दै)"
    ),
}
#: A language of which there are fewer such words than this share of another's is ruled out.
_FEWER_WORDS = 0.6

#: A Han, kana or hangul character says about as much as three letters.
_WIDE = {"han": 3, "kana": 3, "hangul": 3}
#: Text of fewer letters abstains; with fewer than `_MODEL_LETTERS` only the writing system counts.
MIN_LETTERS = 12
_MODEL_LETTERS = 30
#: lingua's low-accuracy mode is overconfident on short texts: a language is ruled out only below this.
_RULED_OUT = 1e-4
#: A writing system with this share of the letters is one of the text's own.
_OWN_SHARE = 0.25
#: Japanese has kana all over; Han characters alone, in a text shorter than this, may be either language.
_KANA_SHARE = 0.05
_HAN_ALONE = 12
#: Beyond this, only the beginning and the end are read.
_READ = 20_000

_LETTERS = {script: re.compile(f"[{characters}]+") for script, characters in SCRIPTS.items()}
#: Most texts are in these; the others are looked for only where one of their letters is.
_COMMON = ("latin", "cyrillic", "greek", "han", "kana", "hangul", "arabic")
_OTHER_LETTER = re.compile(f"[{''.join(SCRIPTS[script] for script in SCRIPTS if script not in _COMMON)}]")
#: What is no prose. Each pattern takes linear time: a span never reads past the next opening mark.
_NO_PROSE = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"```.*?(?:```|\Z)",
        r"<tool_call>((?!<tool_call>).)*?</tool_call>",
        r"`[^`\n]{1,300}`",
        r"\$\$[^$]+\$\$",
        r"\$[^$\n]{1,500}\$",
        r"\\\[((?!\\\[).)*?\\\]",
        r"\\\(((?!\\\().)*?\\\)",
        r"\\begin\{((?!\\begin).)*?\\end\{\w{1,20}\*?\}",
        r"\\[A-Za-z]+",
        r"(?:https?://|www\.)\S+",
        r"\b[\w.+-]{1,64}@[\w-]{1,64}\.[\w.-]{1,64}",
        r"<[^<>]{1,300}>",
        r"\b[^\W\d_]*+[\d_]\w*",
    )
)


def prose(text: str) -> str:
    """Return the text without code, LaTeX, URLs, addresses, tags and words with digits; "" for JSON."""
    text = text.strip()
    if text.startswith(("{", "[")):
        try:
            parse_json(text)
        except JsonError:
            pass
        else:
            return ""
    for pattern in _NO_PROSE:
        text = pattern.sub(" ", text)
    return text


def weights(text: str) -> dict[str, int]:
    """Count letters by writing system, Han, kana and hangul three times."""
    scripts = SCRIPTS if _OTHER_LETTER.search(text) else _COMMON
    counts = {script: sum(map(len, _LETTERS[script].findall(text))) for script in scripts}
    return {script: count * _WIDE.get(script, 1) for script, count in counts.items() if count}


def languages_of(text: str) -> frozenset[str]:
    """Find the languages (ISO 639-1) that a text can be in; none where it is too short to tell.

    Code, LaTeX, URLs and the like do not count (`prose`). A text with a large share of two writing systems
    can be in the languages of both.
    """
    return languages_of_prose(prose(text))


def languages_of_prose(text: str) -> frozenset[str]:
    """Find the languages as `languages_of` does, for text that `prose` has been through."""
    if len(text) > _READ:
        text = f"{text[: _READ // 2]} {text[-_READ // 2 :]}"
    found = weights(text)
    if sum(found.values()) < MIN_LETTERS:
        return frozenset()
    found["kana"], found["han"] = _japanese(found.get("kana", 0), found.get("han", 0))
    total = sum(found.values())
    own = [script for script, weight in found.items() if weight >= max(1, _OWN_SHARE * total)]
    possible: set[str] = set()
    for script in own:
        possible |= _of_script(script, text, found[script])
    for close in _CLOSE:
        if possible & close:
            possible |= close
    return frozenset(possible)


def _japanese(kana: int, han: int) -> tuple[int, int]:
    """Return kana and Han weights, the Han given to Japanese where kana stand among them."""
    return (kana + han, 0) if kana >= _KANA_SHARE * (kana + han) and kana else (kana, han)


def _of_script(script: str, text: str, weight: int) -> set[str]:
    """Return the languages of one writing system that its letters in a text allow."""
    if script == "han" and weight < _HAN_ALONE * _WIDE["han"]:
        return {"zh", "ja"}
    codes = LANGUAGES[script]
    if len(codes) == 1 or weight < _MODEL_LETTERS:
        return set(codes)
    if script == "devanagari":
        return _of_devanagari(text)
    letters = " ".join(_LETTERS[script].findall(text))
    values = _detector(script).compute_language_confidence_values(letters)
    possible = {v.language.iso_code_639_1.name.lower() for v in values if v.value >= _RULED_OUT}
    return possible or set(codes)


def _of_devanagari(text: str) -> set[str]:
    """Return the languages whose own small words, or endings of words, a text in Devanagari has."""
    words = _LETTERS["devanagari"].findall(text)
    counts = {code: sum(bool(own.fullmatch(word)) for word in words) for code, own in _OWN_WORDS.items()}
    most = max(counts.values())
    return {code for code, count in counts.items() if count >= _FEWER_WORDS * most}


@functools.cache
def _detector(script: str) -> LanguageDetector:
    """Build lingua's detector for one writing system; for Latin it takes about 40 MB and 0.2 s."""
    codes = LANGUAGES[script]
    languages = [lang for lang in Language.all() if lang.iso_code_639_1.name.lower() in codes]
    return LanguageDetectorBuilder.from_languages(*languages).with_low_accuracy_mode().build()
