"""Folders that are made once and then kept, by whichever process comes first."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from posttrain.files.durable import explaining_full_disk, sync
from posttrain.files.lock import file_lock


def default_cache() -> Path:
    """Return `$POSTTRAIN_CACHE`, else `~/.cache/posttrain`."""
    return Path(os.environ.get("POSTTRAIN_CACHE") or "~/.cache/posttrain").expanduser().absolute()


def cached_folder(final: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder, which is made if it is not there yet.

    It is made under a temporary name and renamed, so that it is complete or absent. Of several processes that
    want it at once one makes it and the others wait; where there are no locks, the first to finish wins.

    Args:
        final: The folder; its name tells what it depends on.
        make: Fills an empty folder.

    Raises:
        DiskFull: If there is no space; what `make` raises passes unchanged.
    """
    if final.is_dir():
        return final
    temporary = final.parent / f".{final.name}-{uuid.uuid4().hex}.tmp"
    final.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(final.parent / f".{final.name}.lock"):
        if final.is_dir():
            return final
        try:
            with explaining_full_disk(final):
                temporary.mkdir()
                make(temporary)
            _settle(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _settle(temporary: Path, final: Path) -> None:
    """Give a finished folder its name, unless another process was faster."""
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    sync(final.parent)
