"""The files of a run's own node, for its processes on nodes that do not share them.

The node that a run's own process is on is its home: there lie its directory and the models that it makes. A
process on another node fetches what it needs from there and sends home what it wrote, in checked pieces, by
an actor at home. What is shared (a network disk, or equal copies) stays where it is, and on one node all of
this does nothing.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from posttrain.files.cache import cached_folder, default_cache
from posttrain.files.durable import explaining_full_disk, make_directory
from posttrain.run.placement import this_node

R = TypeVar("R")

_NAME = "posttrain-home"
#: Bytes that travel at once, and seconds that they may take.
PIECE, PIECE_S = 32 << 20, 300.0
#: Fetched folders that a node keeps: those of the last stages.
KEPT = 4


class TransferError(RuntimeError):
    """Files did not come as they were sent."""


@dataclass(frozen=True)
class Piece:
    """A part of a file.

    Attributes:
        data: Its bytes.
        sha256: Their hash where they were read.
    """

    data: bytes
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "Piece":
        """Make a piece of bytes that were just read."""
        return cls(data, hashlib.sha256(data).hexdigest())

    def checked(self) -> bytes:
        """Return the bytes; raise TransferError if they are others than were read."""
        if hashlib.sha256(self.data).hexdigest() != self.sha256:
            raise TransferError("a piece of a file arrived with another hash than it was sent with")
        return self.data


@dataclass(frozen=True)
class Stamp:
    """What tells a file's version without reading it: its size, and when it was changed."""

    size: int
    changed: int


class HomeFiles:
    """Reads and writes files of the node that it lives on; an actor's object."""

    def stamps(self, folder: Path) -> dict[str, Stamp]:
        """Return the stamp of every file below a folder, by its name from there."""
        return stamps_of(folder)

    def digest(self, path: Path) -> str:
        """Return the hash of a file."""
        return _digest(path)

    def lacking(self, paths: Iterable[Path]) -> list[Path]:
        """Return those paths at which there is no file."""
        return [path for path in paths if not path.is_file()]

    def read(self, path: Path, offset: int) -> Piece:
        """Read a piece of a file."""
        with path.open("rb") as file:
            file.seek(offset)
            return Piece.of(file.read(PIECE))

    def write(self, path: Path, unfinished: str, piece: Piece, last: bool) -> None:
        """Append a piece to an unfinished file beside a path; the last one gives it its name."""
        make_directory(path.parent)
        partly = path.with_name(unfinished)
        with explaining_full_disk(path), partly.open("ab") as file:
            file.write(piece.checked())
        if last:
            partly.replace(path)


@contextmanager
def serving_home() -> Iterator[None]:
    """Make this process's node the run's home for the length of a `with` block."""
    options = {"name": _NAME, "num_cpus": 0, "max_concurrency": 4, "max_restarts": -1}
    home = ray.remote(HomeFiles).options(scheduling_strategy=this_node(), **options).remote()
    assert isinstance(home, ActorHandle)
    yield
    ray.kill(home)  # and it was kept until here: an actor that nobody keeps ends


def fetch_folder(folder: Path) -> Path:
    """Return where a folder of the home node can be read on this one, and fetch it where it cannot.

    Args:
        folder: A directory at home; the name of a model on a hub stays as it is.

    Returns:
        The folder itself, if it is here with the same files; else a copy in this node's cache.

    Raises:
        TransferError: If a piece arrived damaged.
    """
    home = _home()
    if home is None or not folder.is_absolute():
        return folder
    wanted: dict[str, Stamp] = _get(home.stamps.remote(folder))
    if not wanted or _is_same(home, folder, wanted):
        return folder
    key = hashlib.sha256(repr((str(folder), sorted(wanted.items()))).encode()).hexdigest()[:20]
    copies = default_cache() / "fetched"
    copy = cached_folder(copies / key, partial(_fetch_all, home, folder, wanted))
    os.utime(copy)
    finished = [path for path in copies.iterdir() if not path.name.startswith(".")]
    for old in sorted(finished, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return copy / folder.name  # which tells the step of a checkpoint


def fetch_files(paths: Iterable[Path]) -> None:
    """Fetch the files of these that are missing here from the home node; each appears whole or not at all."""
    home = _home()
    if home is None:
        return
    for path in [path for path in dict.fromkeys(paths) if not path.exists()]:
        partly = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
        try:
            _fetch(home, path, partly)
            partly.replace(path)
        finally:
            partly.unlink(missing_ok=True)


def send_home(paths: Iterable[Path]) -> list[Path]:
    """Send files of this node home, to the same paths, those that are missing there; return these."""
    home = _home()
    if home is None:
        return []
    sent: list[Path] = _get(home.lacking.remote(list(dict.fromkeys(paths))))
    for path in sent:
        unfinished = f".{path.name}-{uuid.uuid4().hex}.tmp"
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while True:
                piece = Piece.of(file.read(PIECE))
                _get(home.write.remote(path, unfinished, piece, file.tell() >= size))
                if file.tell() >= size:
                    break
    return sent


@contextmanager
def writing_home(directory: Path) -> Iterator[None]:
    """Send home what is written into a directory of the home node that this node does not share.

    Args:
        directory: It is there at home; here it may be missing, and is then removed again.
    """
    if directory.is_dir() or _home() is None:
        yield
        return
    make_directory(directory)
    try:
        yield
        send_home(sorted(path for path in directory.rglob("*") if path.is_file()))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def stamps_of(folder: Path) -> dict[str, Stamp]:
    """Return the stamp of every file below a folder, by its name from there; {} if there is no folder."""
    stamps: dict[str, Stamp] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.is_file():
            state = path.stat()
            stamps[path.relative_to(folder).as_posix()] = Stamp(state.st_size, state.st_mtime_ns)
    return stamps


def _home() -> ActorHandle | None:
    """Return the actor at home; None where this process is at home itself, or in no run over nodes."""
    if not ray.is_initialized():
        return None
    return _home_of(ray.get_runtime_context().get_job_id())


@cache
def _home_of(_job: str) -> ActorHandle | None:
    try:
        home = ray.get_actor(_NAME)
    except ValueError:
        return None
    node = _get(home.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))
    return None if node == ray.get_runtime_context().get_node_id() else home


def _get(answer: "ObjectRef[R]") -> R:
    return ray.get(answer, timeout=PIECE_S)


def _is_same(home: ActorHandle, folder: Path, wanted: Mapping[str, Stamp]) -> bool:
    """Tell whether a folder is here as it is at home: shared, or an equal copy."""
    here = stamps_of(folder)
    if here == wanted:
        return True
    if {name: stamp.size for name, stamp in here.items()} != {n: stamp.size for n, stamp in wanted.items()}:
        return False
    return all(
        _digest(folder / name) == _get(home.digest.remote(folder / name))
        for name, stamp in wanted.items()
        if here[name] != stamp
    )


def _fetch_all(home: ActorHandle, folder: Path, wanted: Mapping[str, Stamp], target: Path) -> None:
    """Fetch a folder of the home node into another, with the times of its files."""
    for name, stamp in wanted.items():
        fetched = target / folder.name / name
        _fetch(home, folder / name, fetched)
        if fetched.stat().st_size != stamp.size:
            raise TransferError(f"{folder / name} changed while it was fetched")
        os.utime(fetched, ns=(stamp.changed, stamp.changed))


def _fetch(home: ActorHandle, source: Path, target: Path) -> None:
    """Fetch a file of the home node, piece by piece."""
    make_directory(target.parent)
    with explaining_full_disk(target), target.open("wb") as file:
        while True:
            data = _get(home.read.remote(source, file.tell())).checked()
            file.write(data)
            if len(data) < PIECE:
                break


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
