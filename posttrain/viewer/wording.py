"""How names, figures and other people's text read on the page."""

import re
from urllib.parse import quote

#: Longest text of one message that is shown; of more, the beginning and the end.
MAX_TEXT = 6_000
_ACRONYMS = {
    "sft": "SFT",
    "rl": "RL",
    "dpo": "DPO",
    "kl": "KL",
    "grpo": "GRPO",
    "gspo": "GSPO",
    "sapo": "SAPO",
}
# Control characters, and those that reorder or hide the text around them.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def label(name: str) -> str:
    """Write a machine's name in words.

    Example:
        label("sft_cold_start") == "SFT cold start"
    """
    return " ".join(_ACRONYMS.get(word, word) for word in visible(name).split("_"))


def visible(text: str) -> str:
    """Write characters that hide or reorder text as their code."""
    return _INVISIBLE.sub(lambda match: f"⟨{ord(match[0]):04x}⟩", text)


def shortened(text: str, limit: int = MAX_TEXT) -> str:
    """Return the beginning and the end of a long text, and how much was left out between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"


def link_to(place: str) -> str:
    """Write a place relative to a run's directory, where the page lies too, as a link; "" for none."""
    return f"./{quote(place)}" if place else ""


def percent(share: float) -> str:
    """Write a share in whole per cent, as a sentence wants it."""
    return f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Write seconds in the largest two units.

    Example:
        duration(754) == "12 min 34 s"
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    for size, unit, small_size, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // small_size} {small}"
    return f"{seconds} s"
