"""One spelling for mathematics: LaTeX without decoration, and no signs where LaTeX has a command."""

import re
import unicodedata
from functools import lru_cache

from rewards.reading.text import LOWERED, RAISED, plain_width

_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))

_SCRIPT = re.compile(f"[{RAISED}]+|[{LOWERED}]+")
_DEGREE_SIGN = re.compile("(?<=\\d)º")
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi".split()
_SIGNS = {
    "−": "-", "–": "-", "÷": "/", "、": ",", "。": ".", "ℝ": "\\mathbb{R}",
    **{chr(0x3B1 + place): f"\\{name} " for place, name in enumerate(_GREEK)},
    **{sign: f"\\{name} " for sign, name in zip(
        "×·⋅∞≤≥⩽⩾≠±∪∩∅∈≈π∠〈〉⟨⟩°ρστφωΔΩ",
        "times cdot cdot infty le ge le ge ne pm cup cap emptyset in approx pi angle langle rangle langle"
        " rangle degree rho sigma tau varphi omega Delta Omega".split(),
        strict=True,
    )},
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
#: Decoration, and other names of the same thing; in this order.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:displaystyle|left|right|bigl?|bigr|Bigl?|Bigr|limits|!|mathop)(?![A-Za-z])", ""),
        (r"(?<=\d)(?:\{,\}|\\,|(?<!\\)\\ )(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\[,;:> ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"\\[dt]frac", r"\\frac"),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|operatorname|mbox|emph|bold|boldsymbol)\*?"
         r"\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?|\\(?:degree|circ)(?![A-Za-z])", r"°"),
        (r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*)(-?\d+(?:\.\d+)?)\s*°", r"\1(\\frac{\2\\pi}{180})"),
        (r"\\(?:leqslant|leq|le)(?![A-Za-z])|<=|=<", r"\\le "),
        (r"\\(?:geqslant|geq|ge)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\lt(?![A-Za-z])|&lt;", "<"),
        (r"\\gt(?![A-Za-z])|&gt;", ">"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\mathbb\s*R(?![A-Za-z])|\\R(?![A-Za-z])|\\Reals", r"\\mathbb{R}"),
        (r"\+\s*(?=\\infty)", ""),
        (r"\*\*", "^"),
        (r"√\s*\(([^()]*)\)|(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"\\log_\{?e\}?(?![A-Za-z])", r"\\ln "),
        (r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|log|ln|exp|pi|arc(?:sin|cos|tan))(?![A-Za-z])", r"\\\1 "),
        (r"(?<![\\A-Za-z])(?:[Ii]nfinity|inf)(?![A-Za-z])", r"\\infty "),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*(-\d+|\d{2,})", r"^{\1}"),
        (r"\\cdot(?![A-Za-z])|\\ast(?![A-Za-z])", r"\\cdot "),
        (r"\\times(?![A-Za-z])", r"\\times "),
    )
)  # fmt: skip
_PHRASES = {
    "no solution": "\\emptyset", "no solutions": "\\emptyset", "no real solution": "\\emptyset",
    "no real solutions": "\\emptyset", "empty set": "\\emptyset", "无解": "\\emptyset", "空集": "\\emptyset",
    "\\mathbb{r}": "(-\\infty,\\infty)", "all real numbers": "(-\\infty,\\infty)", "dne": "does not exist",
    "all reals": "(-\\infty,\\infty)", "全体实数": "(-\\infty,\\infty)",
}  # fmt: skip
_ARTICLE = re.compile(r"(?:the|an|a)\s+(?=[A-Za-z]{2})", re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@lru_cache(maxsize=2048)
def canonical(text: str) -> str:
    """Spell a text in one way: no decoration, no Unicode signs where LaTeX has a command."""
    text = text.strip()
    if _PLAIN_NUMBER.fullmatch(text):
        return text
    if not text.isascii():
        text = _SCRIPT.sub(_script, _DEGREE_SIGN.sub("°", text))
        text = plain_width(_SIGN.sub(lambda match: _SIGNS[match.group()], text))
        text = _SIGN.sub(lambda match: _SIGNS[match.group()], _SCRIPT.sub(_script, text))
    text = _unwrapped(text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _ARTICLE.sub("", _unwrapped(" ".join(text.split())), count=1)
    return _PHRASES.get(text.casefold(), text)


def _script(found: re.Match[str]) -> str:
    """Write raised or lowered characters as a power or an index."""
    inner = unicodedata.normalize("NFKC", found[0]).replace("−", "-")
    return ("^{" if found[0][0] in RAISED else "_{") + inner + "}"


def _unwrapped(text: str) -> str:
    """Return the text without the marks around it: dollar signs, emphasis, a full stop."""
    before = ""
    while before != text:
        before = text
        text = text.strip().rstrip(".,;").strip()
        for left, right in _WRAPPERS:
            inner = text[len(left) : -len(right)]
            if inner and left not in inner and text.startswith(left) and text.endswith(right):
                text = inner
    return text
