"""Which rows of a dataset a model can be shown: looked at once, then kept in the cache.

Whether a row can be shown depends on the checkpoint: its control tokens, chat template and settings. So this
stands beside the index of the rows, which every model shares.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Protocol

from posttrain.data.dataset import Dataset
from posttrain.data.row_index import FORMAT
from posttrain.files.cache import cached_folder
from posttrain.files.durable import sync
from posttrain.files.progress import progress_bar
from posttrain.types import Sample

logger = logging.getLogger(__name__)

_FILE = "reasons.json"


class RowCheck(Protocol):
    """Tells whether a sample can be shown to a model."""

    @property
    def identity(self) -> str:
        """Return what differs between checks that may judge differently."""
        ...

    def __call__(self, sample: Sample) -> None:
        """Raise ValueError with the reason if the sample cannot be shown."""
        ...


def without_unrenderable(dataset: Dataset, check: RowCheck, cache: Path) -> Dataset:
    """Return a dataset whose rows can all be shown; the others are among its broken ones.

    Of several processes one looks at the rows and the others wait, so that all of them draw the same.

    Args:
        dataset: The rows that are good by themselves.
        check: Tells which of them cannot be shown.
        cache: Where the reasons are kept; where it cannot be written, every process looks by itself.

    Raises:
        DataError: If the file, or an image or video of a row, has changed since it was checked.
    """
    key = f"{FORMAT}/{dataset.fingerprint}/{dataset.use}/{check.identity}"
    folder = cache / f"renderable-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def make(folder: Path) -> None:
        text = json.dumps({"rows": len(dataset), "reasons": _reasons(dataset, check)})
        (folder / _FILE).write_text(text, encoding="utf-8")
        sync(folder / _FILE)

    try:
        reasons = _read(cached_folder(folder, make), len(dataset))
        if reasons is None:
            shutil.rmtree(folder, ignore_errors=True)
            reasons = _read(cached_folder(folder, make), len(dataset))
    except OSError as error:
        logger.debug("%s cannot be made: %s", folder, error)
        reasons = None
    if reasons is None:
        reasons = dict(_reasons(dataset, check))
    return dataset.without(reasons) if reasons else dataset


def _reasons(dataset: Dataset, check: RowCheck) -> list[tuple[int, str]]:
    """Look at every row; return those that cannot be shown, each with the reason."""
    reasons: list[tuple[int, str]] = []
    for index in progress_bar(f"rendering {dataset.path.name}", range(len(dataset))):
        sample = dataset[index]
        try:
            check(sample)
        except ValueError as error:
            reasons.append((index, str(error)))
    return reasons


def _read(folder: Path, rows: int) -> dict[int, str] | None:
    """Read the reasons of a folder; None if they are damaged, or of another number of rows."""
    try:
        stored = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        return (
            {int(index): str(reason) for index, reason in stored["reasons"]}
            if stored["rows"] == rows
            else None
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
