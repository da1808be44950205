"""Bring a learner's weights to the engines, so that no engine samples from a half-loaded version.

On one machine weights go through a folder in shared memory, or on a disk if there is too little of it; the
engines load them from there, clear their caches and take the new version. The folder of the version before is
removed only when every engine has the new one.
"""

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import psutil

from posttrain.inference.weights import CheckpointWeights

logger = logging.getLogger(__name__)

#: Folder of this machine's shared memory, if it has any.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (a private folder is made in it)
#: Versions that are there at once, while a new one is published; and room for what lies beside the weights.
VERSIONS, MARGIN = 2, 1 << 20
GIB = 1 << 30

PREFIX = "posttrain-weights-"


class NoRoomError(RuntimeError):
    """There is no room to publish weights; the message says how much is needed, and where."""


def make_folder(num_bytes: int, scratch: Path) -> Path:
    """Make the folder through which weights are published, where there is room for two versions of them.

    Shared memory comes first; a container's is often a few MB. Then disks: that of temporary files, which is
    usually the faster one, and the run's own.

    Args:
        num_bytes: Size of the weights as they are published.
        scratch: A folder of the run for passing files.

    Raises:
        NoRoomError: If there is nowhere room.
    """
    needed = VERSIONS * num_bytes + MARGIN
    places = [place for place in (SHARED_MEMORY, Path(tempfile.gettempdir()), scratch) if place.is_dir()]
    for place in places:
        remove_leftovers(place)
    free = {place: shutil.disk_usage(place).free for place in places}
    chosen = next((place for place in places if free[place] >= needed), None)
    told = f"two versions of the weights take {needed / GIB:.3g} GiB"
    if chosen is None:
        raise NoRoomError(f"{told}, which are free nowhere: {_rooms(free)}. {_remedy(places, needed)}")
    if places[0] == SHARED_MEMORY != chosen:
        small = _rooms({SHARED_MEMORY: free[SHARED_MEMORY]})
        logger.warning(
            "%s, but %s: they are published through %s, which is slower. %s",
            *(told, small, chosen, _remedy(places, needed)),
        )
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=chosen))


def _rooms(free: dict[Path, int]) -> str:
    return ", ".join(f"{place} has {room / GIB:.3g} GiB free" for place, room in free.items())


def _remedy(places: Iterable[Path], needed: int) -> str:
    """Say how to make room: in shared memory, if there is any."""
    if SHARED_MEMORY not in places:
        return "Free a disk, or set TMPDIR to a folder on another"
    usage = shutil.disk_usage(SHARED_MEMORY)
    size = math.ceil((usage.total - usage.free + needed) / GIB)
    return (
        f"Free or enlarge {SHARED_MEMORY}, in a container by docker run --shm-size={size}g; or free a disk,"
        " or set TMPDIR to a folder on another"
    )


def remove_leftovers(parent: Path) -> None:
    """Remove the folders of runs that were killed: weights in shared memory take up memory."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


class WeightSource(Protocol):
    """Something that can write its weights (the learners)."""

    def make_folder(self, scratch: Path) -> Path:
        """Make the folder for its weights where it writes them; see `make_folder`."""
        ...

    def write_weights(self, directory: Path) -> None:
        """Write a folder of safetensors that vLLM reads."""
        ...


class WeightSink(Protocol):
    """Something that takes weights (the engine pool)."""

    def publish(self, weights: CheckpointWeights) -> None:
        """Return once every engine serves the weights; raise naming the engine that does not."""
        ...


class WeightSync:
    """Publishes weights from a source to a sink.

    Args:
        source: The learners.
        sink: The engine pool.
        scratch: A folder of the run for passing files.

    Raises:
        NoRoomError: If there is nowhere room for the weights.

    Example:
        sync = WeightSync(learners, pool, run.scratch(stage.name))
        sync.publish(version=12)
    """

    def __init__(self, source: WeightSource, sink: WeightSink, scratch: Path) -> None:
        self._source = source
        self._sink = sink
        self._directory = source.make_folder(scratch)

    def publish(self, version: int) -> None:
        """Load the source's present weights into every engine, as this version."""
        path = self._directory / f"version-{version}"
        self._source.write_weights(path)
        self._sink.publish(CheckpointWeights(path, version))
        for older in self._directory.iterdir():
            if older != path:
                shutil.rmtree(older)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._directory, ignore_errors=True)
