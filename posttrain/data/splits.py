"""Splits of a dataset as the names of files and folders say them: `train-00000-of-00002`, `val/x`, `my.test`.

The words are those of Hugging Face's `datasets`, and some that papers use.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

#: Word → the word for the same split by which it is compared.
_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "valset", "devset", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
    **dict.fromkeys(("eval", "evaluation", "evalset"), "eval"),
    **{word: word for word in ("trainval", "testmini", "minival", "testdev", "holdout", "heldout")},
}
#: How the Hub names the parts of a split, with a digest after it at times.
_SHARD = re.compile(r"(?P<split>.+?)[-_.]\d{4,6}-of-(?P<total>\d{4,6})(?:[-_.][0-9a-f]{8,64})?")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SEPARATORS = re.compile(r"[^a-z]+")


@dataclass(frozen=True)
class Split:
    """What the name of a file says of its split.

    Attributes:
        name: As it is written, in lower case.
        same: Equal for the spellings of one split, `val` and `validation`.
        is_known: Whether a word for a split is in it; any name may stand before `-00000-of-00002`.
    """

    name: str
    same: str
    is_known: bool


def split_of(path: PurePath) -> Split | None:
    """Tell a file's split by its path relative to the dataset's folder; None if nothing says it.

    What is named for a split as a whole comes first, then the nearest folder that is, then a word of the
    file's name, then one of a folder's.
    """
    stem = path.name.removesuffix(path.suffix)
    shard = _SHARD.fullmatch(stem)
    stem = shard["split"] if shard else stem
    if stem.lower() in _WORDS:
        return _known(stem.lower())
    folders = list(reversed(path.parts[:-1]))
    whole = next((part.lower() for part in folders if part.lower() in _WORDS), None)
    if whole is not None:
        return _known(whole)
    word = _word(stem)
    if shard:
        return Split(stem.lower(), stem.lower(), word is not None)
    word = word or next((found for part in folders if (found := _word(part))), None)
    return None if word is None else _known(word)


def is_one_split(splits: Collection[Split | None]) -> bool:
    """Tell whether files are of one split, as far as their names say it.

    Names before `-00000-of-00002` are those of splits only where one of them has a word for it.
    """
    said = [split for split in splits if split is not None]
    return len({split.same for split in said}) < 2 or not any(split.is_known for split in said)


def chosen(wanted: str, splits: Mapping[Path, Split | None]) -> list[Path]:
    """Return the files of a split.

    They are those that say its very name; if there are none, those that say another word for it; else those
    whose names begin so.
    """
    wanted = wanted.strip().lower()
    same = _WORDS.get(wanted, wanted)
    said = {file: split for file, split in splits.items() if split is not None}
    return (
        [file for file, split in said.items() if split.name == wanted]
        or [file for file, split in said.items() if split.same == same]
        or [file for file in splits if wanted and file.name.lower().startswith(wanted)]
    )


def missing_parts(files: Collection[Path]) -> list[str]:
    """Return which splits lack parts that the names of the others count: `2 of 4 of train`."""
    found: Counter[tuple[Path, str, int]] = Counter()
    for file in files:
        if shard := _SHARD.fullmatch(file.name.removesuffix(file.suffix)):
            found[file.parent, shard["split"], int(shard["total"])] += 1
    return [
        f"{total - count:,} of {total:,} of {split}"
        for (_, split, total), count in found.items()
        if count < total
    ]


def _known(word: str) -> Split:
    return Split(word, _WORDS[word], True)


def _word(name: str) -> str | None:
    """Return the first word for a split in a name."""
    words = _SEPARATORS.split(_CAMEL.sub(" ", name).lower())
    return next((word for word in words if word in _WORDS), None)
