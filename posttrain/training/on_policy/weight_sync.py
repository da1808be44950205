"""Bring a learner's weights to the engines, so that no engine samples from a half-loaded version.

On one machine weights go through a folder in shared memory, or on disk if there is none; the engines load
them from there, clear their caches and take the new version. The folder of the version before is removed
only when every engine has the new one.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

import psutil

#: Folder of this machine's shared memory, if it has any.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (a private folder is made in it)


PREFIX = "posttrain-weights-"


def remove_leftovers(parent: Path) -> None:
    """Remove the folders of runs that were killed: weights in shared memory take up memory."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


class WeightSource(Protocol):
    """Something that can write its weights (the learners)."""

    def write_weights(self, directory: Path) -> None:
        """Write a folder of safetensors that vLLM reads."""
        ...


class WeightSink(Protocol):
    """Something that takes weights (the engine pool)."""

    def publish(self, path: Path, version: int) -> None:
        """Return once every engine serves `version`; raise naming the engine that does not."""
        ...


class WeightSync:
    """Publishes weights from a source to a sink.

    Args:
        source: The learners.
        sink: The engine pool.

    Example:
        sync = WeightSync(learners, pool)
        sync.publish(version=12)
    """

    def __init__(self, source: WeightSource, sink: WeightSink) -> None:
        self._source = source
        self._sink = sink
        parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
        remove_leftovers(parent)
        self._directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))

    def publish(self, version: int) -> None:
        """Load the source's present weights into every engine, as this version."""
        path = self._directory / f"version-{version}"
        self._source.write_weights(path)
        self._sink.publish(path, version)
        for older in self._directory.iterdir():
            if older != path:
                shutil.rmtree(older)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._directory, ignore_errors=True)
