"""How many tokens each row of a dataset takes: counted once, then kept in the cache."""

import array
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from posttrain.data.cache import cached_folder
from posttrain.data.formats import DataError
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
        """The number of tokens, at least 1; raises ValueError where the sample cannot be shown."""
        ...


def token_lengths(
    samples: Sequence[Sample] | Any, fingerprint: str, counter: TokenCounter, cache: Path
) -> Sequence[int]:
    """The tokens of every sample, 4 bytes each.

    Args:
        samples: In order.
        fingerprint: Of the samples and of the images' paths.
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

    stored = array.array("I")
    stored.frombytes((cached_folder(cache / f"lengths-{digest[:16]}", make) / _FILE).read_bytes())
    return stored
