"""How many tokens each row of a dataset takes: counted once, then kept in the cache."""

import array
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from posttrain.data.formats import DataError
from posttrain.files.cache import cached_folder
from posttrain.files.durable import sync
from posttrain.files.progress import progress_bar
from posttrain.types import Sample

_FILE = "lengths.bin"


class TokenCounter(Protocol):
    """Counts the tokens of a sample.

    Attributes:
        identity: Differs between counters that count differently.
    """

    identity: str

    def __call__(self, sample: Sample) -> int:
        """Return the number of tokens, at least 1; raise ValueError where the sample cannot be shown."""
        ...


class Samples(Protocol):
    """A dataset, or a list of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def token_lengths(samples: Samples, fingerprint: str, counter: TokenCounter, cache: Path) -> Sequence[int]:
    """Return the tokens of every sample, 4 bytes each; of several processes one counts and the others wait.

    Args:
        samples: In order.
        fingerprint: Differs where the samples, or the images that they show, do.
        counter: How to count.
        cache: Where counts are kept.

    Raises:
        DataError: If a sample cannot be shown to the model, naming it.
    """
    digest = hashlib.sha256(f"{fingerprint}/{counter.identity}".encode()).hexdigest()

    def make(folder: Path) -> None:
        lengths = array.array("I")
        for index in progress_bar("counting tokens", range(len(samples))):
            sample = samples[index]
            try:
                lengths.append(counter(sample))
            except ValueError as error:
                raise DataError(f"sample {sample.id}: {error}") from error
        with (folder / _FILE).open("wb") as file:
            lengths.tofile(file)
        sync(folder / _FILE)

    folder = cache / f"lengths-{digest[:16]}"
    stored = _read(cached_folder(folder, make))
    if len(stored) != len(samples):
        shutil.rmtree(folder, ignore_errors=True)
        stored = _read(cached_folder(folder, make))
    return stored


def _read(folder: Path) -> Sequence[int]:
    """Read the counts of a folder; none if they are damaged."""
    content = (folder / _FILE).read_bytes() if (folder / _FILE).is_file() else b""
    stored = array.array("I")
    stored.frombytes(content if len(content) % stored.itemsize == 0 else b"")
    return stored
