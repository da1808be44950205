"""Which files of a folder are a dataset's: those of one split, and of one kind.

A folder that holds several splits is no dataset until one of them is chosen, so that test data are never
learned because they lie there.
"""

import functools
import logging
import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from posttrain.config.hub import how_to_fetch, is_address
from posttrain.data.formats import DataError
from posttrain.data.splits import Split, chosen, is_one_split, missing_parts, split_of
from posttrain.media.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".jsonl", ".json")
DICT_FILE, STATE_FILE = "dataset_dict.json", "state.json"
#: JSON files that describe a dataset.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", DICT_FILE, STATE_FILE)
#: Bytes of a JSON file that are looked at to tell rows from a description.
_BEGINNING = 1 << 16


def data_files(path: Path, split: str | None = None) -> list[Path]:
    """List the files of a dataset in the order in which they are read.

    Hidden files and folders are passed over, links to folders are followed, and a JSON file that holds one
    object is no rows where other files are. Of a Hugging Face dataset on disk the files are its Arrow files.

    Args:
        path: A file, or a folder.
        split: Names of splits, joined by "+"; all that there is if None.

    Raises:
        DataError: If there are none, or it is not clear which are meant.
    """
    if path.is_file():
        if split is not None:
            raise DataError(f"{path} is one file and has no split {split!r}; remove source.split")
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path} must end in one of {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise not_there(str(path), path)
    if is_hugging_face(path):
        return [file for folder in split_folders(path, split) for file in sorted(folder.glob("*.arrow"))]
    files = _of_split(path, _row_files(path), split)
    kinds = Counter(file.suffix.lower() for file in files)
    if len(kinds) > 1:
        held = " and ".join(f"{kinds[suffix]:,} {suffix}" for suffix in SUFFIXES if suffix in kinds)
        raise DataError(
            f"{path} has files of several kinds, {held}, which may be the same rows twice; set source.path "
            "to a file or a folder of one kind, or move the others away"
        )
    if missing := missing_parts(files):
        _warn(
            f"{path}: parts are not there: {', '.join(missing)}; fetch them, unless you mean the others alone"
        )
    return files


def not_there(written: str, path: Path) -> DataError:
    """Return the error of a dataset's path at which there is nothing."""
    shown = written if is_address(written) else path
    remedy = " or ".join(filter(None, ("set source.path to where the rows are", how_to_fetch(written))))
    return DataError(f"{shown} is not a file or a folder; {remedy}")


def is_hugging_face(path: Path) -> bool:
    """Tell whether a folder is what `save_to_disk` writes: a dataset, several splits, or folders of these."""
    return (path / DICT_FILE).is_file() or (path / STATE_FILE).is_file() or bool(_saved_splits(path))


def split_folders(path: Path, split: str | None) -> list[Path]:
    """Return the folders of the splits of a Hugging Face dataset on disk.

    Raises:
        DataError: If it has other splits, or several of which none is chosen.
    """
    if (path / STATE_FILE).is_file() and not (path / DICT_FILE).is_file():
        if split is not None:
            raise DataError(f"{path} is one dataset and has no split {split!r}; remove source.split")
        return [path]
    splits = _saved_splits(path)
    if split is None and len(splits) == 1:
        return [path / splits[0]]
    wanted = [] if split is None else split.split("+")
    if not wanted or not set(wanted) <= set(splits):
        found = ", ".join(splits)
        raise DataError(f"{path} has the splits {found}; set source.split to one of them, or to a+b")
    return [path / name for name in wanted]


def _saved_splits(path: Path) -> list[str]:
    return sorted(file.parent.name for file in path.glob(f"*/{STATE_FILE}"))


def _row_files(path: Path) -> list[Path]:
    """List all files that rows may be in."""
    everything = sorted(_walk(path))
    found = [
        file for file in everything if file.suffix.lower() in SUFFIXES and file.name not in _DESCRIPTIONS
    ]
    rows = [file for file in found if file.suffix.lower() != ".json" or _holds_rows(file)]
    if rows and len(rows) < len(found):
        passed = [file.name for file in found if file not in set(rows)]
        shown = ", ".join(passed[:3]) + (" …" if len(passed) > 3 else "")
        _warn(f"{path}: {shown} passed over, as one JSON object is no list of rows")
    if rows or found:
        return rows or found
    others = Counter(file.suffix.lower() for file in everything if file.suffix)
    held = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(3))
    captions = (
        '; rows are JSON lines, {"messages": […], "images": ["a.png"]}, whose images lie beside them'
        if not others.keys().isdisjoint(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        else ""
    )
    raise DataError(f"{path} has no {', '.join(SUFFIXES)} file{f'; it has {held}' if held else ''}{captions}")


@functools.cache
def _warn(text: str) -> None:
    """Say something once a process."""
    logger.warning(text)


def _walk(path: Path) -> list[Path]:
    """List the files below a folder; links are followed, each folder is entered once."""
    found, entered = [], set()
    for folder, inner, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [] if real in entered else [name for name in inner if not name.startswith(".")]
        if real not in entered:
            found += [Path(folder) / name for name in names if not name.startswith(".")]
        entered.add(real)
    return found


def _holds_rows(file: Path) -> bool:
    """Tell whether a JSON file begins as a list of objects, or as a line each; else it is a description."""
    try:
        with file.open("rb") as opened:
            beginning = opened.read(_BEGINNING).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return True  # whoever reads its rows says why it cannot be read
    if beginning.startswith(b"["):
        return beginning[1:].lstrip()[:1] in (b"{", b"]", b"")
    first, _, second = beginning.partition(b"\n")
    return first.rstrip().endswith(b"}") and second.lstrip().startswith(b"{")


def _of_split(path: Path, files: list[Path], split: str | None) -> list[Path]:
    """Return the files of the wanted splits; all of them where they are of one.

    Raises:
        DataError: If several are there and none is wanted, or a wanted one is not there.
    """
    splits = {file: split_of(file.relative_to(path)) for file in files}
    if split is None:
        if is_one_split(splits.values()):
            return files
        raise DataError(
            f"{path} holds several splits: {_shown(splits.values())}; set source.split to one of them, or to "
            f"several joined by +, such as source: {{path: …, split: {_first(splits.values())}}}"
        )
    found: set[Path] = set()
    for wanted in split.split("+"):
        taken = chosen(wanted, splits)
        if not taken:
            there = _shown(splits.values())
            holds = f"it holds {there}" if there else "no name of a file or folder in it says a split"
            raise DataError(f"{path} has no split {wanted!r}; {holds}; change or remove source.split")
        found.update(taken)
    return sorted(found)


def _shown(splits: Collection[Split | None]) -> str:
    """Return the names of splits with the number of their files."""
    counts = Counter(split.name for split in splits if split is not None)
    return ", ".join(
        f"{name} ({count:,} file{'s' if count > 1 else ''})" for name, count in sorted(counts.items())
    )


def _first(splits: Collection[Split | None]) -> str:
    """Return the name of the split to propose: one for training if there is one."""
    names = sorted({split.name for split in splits if split is not None})
    return next((name for name in names if name.startswith("train")), names[0])
