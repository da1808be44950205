"""Symbolic links among images and videos: followed where they lead to a file of the same kind.

Caches that keep contents under their hash (the hub's, DVC's, git-annex's) show them by links whose names say
what the contents are; the file behind such a link has no suffix that could tell.
"""

import re
from collections.abc import Collection
from pathlib import Path

#: The name of contents in such a cache; DVC makes the first two digits a folder.
_DIGEST = re.compile(r"(?:\w+-s\d+--)?[0-9a-f]{30,128}", re.ASCII)


class LinkError(ValueError):
    """A link leads to a file of another kind than its name says."""


def follow(path: Path, suffixes: Collection[str]) -> Path:
    """Return the file or folder that a path leads to, under a name that says what kind it is.

    Nothing is opened. That is the real path, so that a link which is turned elsewhere later is another path;
    of contents in a cache it is the link, whose folder alone is resolved.

    Args:
        path: An absolute path, of which any part may be a link.
        suffixes: In lower case, with their dots: those of the kind that is expected.

    Raises:
        LinkError: If the name says another kind than that of the file behind it.
        OSError: If there is nothing, or no permission to look.
        RuntimeError: If links go in a circle.
        ValueError: If it is no path at all.
    """
    target = path.resolve(strict=True)
    if target.suffix.lower() in suffixes or target.is_dir() or path.suffix.lower() not in suffixes:
        return target
    folder = path.parent.resolve()
    if not (_DIGEST.fullmatch(target.name) or _is_blob(target, folder)):
        raise LinkError(f"it is a link to {target.name[:80]}, which does not end so")
    return folder / path.name


def _is_blob(target: Path, folder: Path) -> bool:
    """Tell whether a file is one of the hub's cache that the snapshot around a folder shows."""
    store = target.parent
    return store.name == "blobs" and folder.is_relative_to(store.parent / "snapshots")
