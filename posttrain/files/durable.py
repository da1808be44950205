"""Files that a crash or a full disk leaves old or new, never half written."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Below this, a write that failed for an untold reason has most likely filled the disk.
FULL_DISK_BYTES = 1 << 20
#: What the system says of a full disk, and of a quota that is used up.
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(RuntimeError):
    """A write found no space left; what had been written before is intact."""


@contextmanager
def explaining_full_disk(path: Path) -> Iterator[None]:
    """Turn an error that a full disk causes inside into `DiskFull` with a remedy; others pass unchanged.

    Args:
        path: What is being written; its folder exists.
    """
    try:
        yield
    except Exception as error:
        if not _is_disk_full(error, path.parent):
            raise
        raise DiskFull(
            f"{path} was not written, the disk is full ({error}). What was saved before is intact: free some"
            " space, then go on with --resume"
        ) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a small file's content, text or bytes, so that a crash leaves the old or the new one.

    Raises:
        DiskFull: If there is no space; the old content is intact.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with explaining_full_disk(path):
            write_synced(unfinished, content)
            unfinished.replace(path)
            sync(path.parent)
    except DiskFull:
        unfinished.unlink(missing_ok=True)
        raise


def write_synced(path: Path, content: str | bytes) -> None:
    """Write a file, text or bytes, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a folder and those above it, each one's entry on the disk."""
    if not path.is_dir():
        make_directory(path.parent)
        with explaining_full_disk(path):
            path.mkdir(exist_ok=True)
            sync(path.parent)


def _is_disk_full(error: Exception, directory: Path) -> bool:
    """Tell whether a write failed because the disk is full, which some writers (torch.save) do not say."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    said = any(os.strerror(number) in str(error) for number in _FULL)
    return said or shutil.disk_usage(directory).free < FULL_DISK_BYTES
