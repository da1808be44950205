"""How long reading files may take."""

from pathlib import Path

#: What is expected of a disk at least, in bytes a second: one of the network that several read at once.
SLOW_DISK = 50e6


def seconds_to_read(directory: Path) -> float:
    """Return the seconds in which a slow disk reads a folder; 0 where there is none (a model of the hub)."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / SLOW_DISK
