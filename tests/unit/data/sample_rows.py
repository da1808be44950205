"""Rows that show images and videos, and what is asked of their index."""

import json
import os
import time
from pathlib import Path

from posttrain.config.data import Use
from posttrain.data.dataset import BrokenRow, Dataset
from posttrain.data.row_index import USES, RowIndex
from posttrain.data.sealing import INDEXES, sealed_index
from posttrain.types import Sample

TURN = {"role": "assistant", "content": "K"}


def row(number: int, *shown: str, **changes: object) -> dict[str, object]:
    kinds = ("video" if name == "walk" or name.endswith(".mp4") else "image" for name in shown)
    blocks = [{"type": kind, kind: name} for kind, name in zip(kinds, shown, strict=True)]
    asked = {"role": "user", "content": [*blocks, {"type": "text", "text": f"Q {number}"}]}
    return {"id": str(number), "messages": [asked, TURN]} | changes


def age(folder: Path, seconds: float = 60) -> None:
    """Have all files last changed a while ago."""
    then = time.time_ns() - int(seconds * 1e9) + 1
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(then, then))


def opened(folder: Path, cache: Path, look_again: bool = True) -> RowIndex:
    return sealed_index(folder / "rows.jsonl", None, cache, look_again)


def contents(index: RowIndex) -> dict[Use, tuple[list[Sample], list[BrokenRow], str]]:
    """Samples, broken rows and fingerprint, for every use."""
    found: dict[Use, tuple[list[Sample], list[BrokenRow], str]] = {}
    for use in USES:
        each = Dataset(index, use)
        found[use] = ([each[number] for number in range(len(each))], each.broken, each.fingerprint)
    return found


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row(99)) + "\n")


def rewrite(path: Path) -> None:
    """Change the contents, and neither the size nor the time."""
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Q 0", b"Q !", 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def index_file(cache: Path) -> Path:
    (file,) = (cache / INDEXES).glob("*.index")
    return file
