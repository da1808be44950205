"""Which columns of a row may stay unread: those that are plainly no part of the dialogue.

Rewards and environments read columns of their own, and most data sets have some that nobody needs. One that
is called, or looks, like a picture, a message, a tool or a mark of what is learned may be the very thing that
was to be shown, so it must be declared: `keep_columns` in the dataset's YAML, or `drop_columns`.
"""

import functools
import re
from collections.abc import Collection, Mapping

from posttrain.config.data import FORMAT_COLUMNS
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.keys import SIZE_KEYS, VIDEO_KEYS, in_words, is_empty, nearest_key
from posttrain.media.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

#: Columns that rewards of this package or of others read, and those that data sets of questions have.
FREE = frozenset(
    {
        *("answer", "answers", "solution", "solutions", "label", "labels", "problem", "question", "choices"),
        *("options", "constraints", "schema", "language", "target_tool_calls", "reward_model", "extra_info"),
        *("data_source", "ability", "tests", "test_cases", "level", "subject", "difficulty", "source"),
    }
)
#: Words for what a model is shown or says. Numbers and truth values under such a name are none of that.
_SHOWN = (
    *(
        "image",
        "img",
        "picture",
        "pic",
        "photo",
        "photograph",
        "screenshot",
        "video",
        "film",
        "movie",
        "clip",
    ),
    *("audio", "sound", "speech", "frame", "media", "pixel", "message", "conversation", "dialog", "dialogue"),
    *("chat", "turn", "history", "context", "system", "tool", "function", "reasoning", "reason", "thinking"),
    *("think", "thought", "rationale", "cot", "chosen", "rejected", "reject", "preferred", "prompt", "query"),
    *("instruction", "response", "reply", "completion", "output", "input", "object", "persona"),
)
#: Words for what is learned; a number under such a name says how much.
_LEARNED = ("loss", "mask", "weight", "train", "training", "trainable")
#: Columns that say how a row is shown, which the recipe decides for all rows alike.
_SETTINGS = frozenset({*SIZE_KEYS, *VIDEO_KEYS, "enable_thinking"} - {"start", "end", "sha256"})
#: Words that make a name one of something about a text or a picture, and not of itself.
_ABOUT = frozenset(
    {
        *(
            "id",
            "ids",
            "idx",
            "index",
            "uid",
            "uuid",
            "hash",
            "md5",
            "sha",
            "sha256",
            "source",
            "type",
            "kind",
        ),
        *(
            "count",
            "num",
            "number",
            "width",
            "height",
            "size",
            "score",
            "scores",
            "rating",
            "ratings",
            "rank",
        ),
        *("reward", "model", "length", "len", "tokens", "lang", "language", "category", "name", "license"),
        *("licence", "origin", "quality", "split", "date", "time", "timestamp", "version", "level", "label"),
        *("finish", "stop"),
    }
)
_LONG = tuple(word for word in _SHOWN if len(word) >= 6)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_MEDIA = tuple({*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, ".wav", ".mp3", ".flac"})
#: Columns that some format reads; a name near one of these was probably meant to be it.
_READ = tuple({name for names in FORMAT_COLUMNS.values() for name in names} - FREE - {"id", "columns"})
#: Longest text that is looked at as a path.
_PATH = 1024


def split_columns(
    free: Mapping[str, object], kept: Collection[str], format_name: str
) -> tuple[dict[str, object], dict[str, object]]:
    """Divide the columns that a format does not read into those that are plainly free and those declared.

    Args:
        free: The columns.
        kept: What `keep_columns` names.
        format_name: The row's format, for errors.

    Raises:
        DataError: If one looks like a part of the dialogue and is not declared.
    """
    plain: dict[str, object] = {}
    declared: dict[str, object] = {}
    refused: dict[str, object] = {}
    for name, value in free.items():
        if not is_suspect(name, value):
            plain[name] = value
        elif name in kept:
            declared[name] = value
        else:
            refused[name] = value
    if refused:
        raise DataError(_refusal(refused, format_name))
    return plain, declared


def is_suspect(name: str, value: object) -> bool:
    """Tell whether a column may be a part of the dialogue, by its name or by what it holds."""
    words = _suspicion(name)
    if words == "free" or is_empty(value):
        return False
    if words in ("learned", "meant"):
        return True
    return not _is_numbers(value) and (words == "shown" or _is_picture(value) or _is_dialogue(value))


@functools.lru_cache(maxsize=4096)
def _suspicion(name: str) -> str:
    """Return what a name speaks of: what is `shown`, `learned` or was `meant`, nothing; or `free`."""
    if name in FREE:
        return "free"
    words = {word.lower() for part in re.split(r"\W+|_", name) for word in _WORDS.findall(part)}
    single = words | {word.removesuffix("s") for word in words}
    if single & set(_LEARNED) or name in _SETTINGS:
        return "learned"
    if single & _ABOUT:
        return ""
    if nearest_key(name, _READ):
        return "meant"
    whole = name.lower()
    return "shown" if single & set(_SHOWN) or any(word in whole for word in _LONG) else ""


def _is_numbers(value: object) -> bool:
    """Tell whether a value is a number or a truth value, or a list of these: marks, sizes, scores."""
    if isinstance(value, list):
        return all(isinstance(entry, int | float) for entry in value)
    return isinstance(value, int | float)


def _is_picture(value: object) -> bool:
    """Tell whether a value is a picture, a film or a sound: a path, a data: URL, bytes, or a list of them."""
    if isinstance(value, str):
        path = value if len(value) <= _PATH and "\n" not in value else ""
        return path.lower().endswith(_MEDIA) or value[:5].lower() == "data:"
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes) or _is_picture(value.get("path") or 0)
    if isinstance(value, list):
        return bool(value) and _is_picture(value[0])
    return isinstance(value, bytes)


def _is_dialogue(value: object) -> bool:
    """Tell whether a value is messages, or looks like some."""
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return False
    return ("role" in first and "content" in first) or ("from" in first and "value" in first)


def _refusal(refused: Mapping[str, object], format_name: str) -> str:
    """Say which columns are not read, what the first of them may be, and how all of them are declared."""
    first, *more = refused
    hint, listed = _hint(first, refused[first], format_name), ", ".join(refused)
    said, it = f"the column {first!r} is not read; {hint}", "it"
    if more:
        said, it = f"the columns {in_words([*refused])} are not read; of {first!r}: {hint}", "each"
    return (
        f"{said}; in the dataset's YAML, write keep_columns: [{listed}] if {it} is for rewards alone,"
        f" drop_columns: [{listed}] to leave {it} out, or columns to read {it} as another"
    )


def _hint(name: str, value: object, format_name: str) -> str:
    own = FORMAT_COLUMNS[format_name]
    others = sorted(
        other for other, names in FORMAT_COLUMNS.items() if name in names and other != format_name
    )
    if meant := nearest_key(name, own):
        return f"did you mean {meant!r}?"
    if others:
        return f"format: {'openai' if 'openai' in others else others[0]} reads it"
    if _is_picture(value):
        return "it looks like a picture, a film or a sound that is not shown"
    if _is_dialogue(value):
        return "it looks like messages"
    return f"the format {format_name} has {', '.join(own)}"
