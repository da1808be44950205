"""Datasets on disk: find, generate or rewrite them, set broken rows aside, and mix them in exact shares."""

import array
import functools
import hashlib
import inspect
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.config import DatasetConfig, load_dataset_config, missing_variable
from posttrain.data.cache import cached_folder, default_cache
from posttrain.data.formats import DataError, parse_row, rows
from posttrain.data.lengths import TokenCounter, token_lengths
from posttrain.data.mixing import TokenSchedule, schedule, shuffled
from posttrain.data.prepared import DATA, PLACES, Source, locate, prepare, read_left_out
from posttrain.durable import DiskFull, sync
from posttrain.images import ImageError, check_image
from posttrain.plugins import resolve
from posttrain.types import Sample

logger = logging.getLogger(__name__)

#: Share of broken rows above which a dataset is refused.
MAX_BAD_SHARE = 0.01
#: Broken rows that an error or a warning quotes.
_QUOTED = 5


@dataclass(frozen=True)
class BrokenRow:
    """A row that was set aside.

    Example:
        BrokenRow("/data/train.jsonl:17", "image 'images/17.png' cannot be found: No such file or directory")
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class Dataset:
    """The good rows of a canonical file, parsed when asked for; about 16 bytes a row are held.

    Attributes:
        path: The JSONL file.
        image_root: What image paths are relative to.
        fingerprint: SHA-256 of the file.
        broken: The rows set aside, with place and reason.
        filtered: Number of rows that the dataset's filters removed.

    Example:
        dataset = Dataset(Path("train.jsonl"))
        dataset[0].messages
    """

    def __init__(
        self,
        path: Path,
        image_root: Path | None = None,
        places: Path | None = None,
        broken: Sequence[BrokenRow] = (),
        filtered: int = 0,
    ):
        """Read the whole file once: every row is parsed, and every image checked.

        Args:
            path: A canonical file.
            image_root: What image paths are relative to; the file's folder if None.
            places: Of a rewritten file, which line says where each line came from.
            broken: Rows that were set aside before the file was written.
            filtered: Number of rows that filters removed before.

        Raises:
            DataError: If the file cannot be read.
        """
        self.path = path.absolute()
        self.image_root = self.path.parent if image_root is None else image_root.absolute()
        self._places = places
        self.broken: list[BrokenRow] = list(broken)
        self.filtered = filtered
        self._offsets = array.array("Q")
        self._lines = array.array("Q")
        try:
            self._version = _version(self.path)
            with self.path.open("rb") as file:
                self.fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                self._scan(file)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index` of the good rows, in the file's order.

        Raises:
            IndexError: Beyond the last row.
            DataError: If the file has changed since it was opened, or an image is gone.
        """
        offset, line = self._offsets[index], self._lines[index]
        try:
            if _version(self.path) != self._version:
                raise DataError("the file has changed since the run began; restore it, or start anew")
            with self.path.open("rb") as file:
                file.seek(offset)
                return parse_row(file.readline(), self.image_root)
        except OSError as error:
            raise DataError(f"{self.path}:{line} cannot be read: {error.strerror}") from error
        except DataError as error:
            raise DataError(f"{self.place(line)}: {error}") from None

    def place(self, line: int) -> str:
        """Where a line of the file came from, as `file:line`."""
        if self._places is not None:
            with self._places.open(encoding="utf-8") as places:
                return next(itertools.islice(places, line - 1, None)).rstrip("\n")
        return f"{self.path}:{line}"

    def _scan(self, file: Any) -> None:
        ids: set[str] = set()
        images: set[str] = set()
        for line, offset, content in rows(file):
            try:
                sample = parse_row(content, self.image_root)
                if sample.id in ids:
                    raise DataError(f"the id {sample.id!r} is an earlier row's")
                _check_images(sample, images)
            except (DataError, ImageError) as error:
                self.broken.append(BrokenRow(self.place(line), str(error)))
                continue
            ids.add(sample.id)
            self._offsets.append(offset)
            self._lines.append(line)


class Mixture:
    """An endless draw from several datasets in exact shares; a pure function of the draw's number.

    After any number of draws, each dataset's count is less than one off its share of the samples; or, given
    lengths, its tokens are above their share by one sample at most. Each dataset is gone through in a new
    order every epoch, so no row comes a second time before all have come once. There is no state: to resume
    is to go on with the next number.

    Attributes:
        datasets: By name.

    Example:
        mixture = Mixture({"zoom": zoom, "list": listing}, {"zoom": 0.75, "list": 0.25}, seed=0)
        name, row = mixture.index(1000)
        sample = mixture.datasets[name][row]
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        weights: Mapping[str, float],
        seed: int,
        lengths: Mapping[str, Sequence[int]] | None = None,
    ):
        """Lay out one period of the draw.

        Args:
            datasets: By name; none may be empty.
            weights: By the same names; positive, and need not sum to 1.
            seed: Of the orders in which rows come.
            lengths: By dataset, the tokens of each row; the shares are then of tokens, not of samples.

        Raises:
            DataError: If the names differ, a dataset is empty, or a weight is not a positive number.
        """
        if set(datasets) != set(weights):
            raise DataError(f"the weights are for {sorted(weights)}, the datasets are {sorted(datasets)}")
        for name, dataset in datasets.items():
            if not len(dataset):
                raise DataError(f"dataset {name} has no rows")
        self.datasets = dict(datasets)
        self._seed = seed
        self._by_tokens: TokenSchedule | None = None
        if lengths is not None:
            self._by_tokens = TokenSchedule(weights, lambda name, nth: lengths[name][self._row(name, nth)])
        self._period = schedule(weights)
        self._drawn_before: list[int] = []
        self._drawn_in_period = dict.fromkeys(datasets, 0)
        for name in self._period:
            self._drawn_before.append(self._drawn_in_period[name])
            self._drawn_in_period[name] += 1

    def __len__(self) -> int:
        """Rows of all datasets together."""
        return sum(len(dataset) for dataset in self.datasets.values())

    def index(self, draw: int) -> tuple[str, int]:
        """Dataset and row of a draw, counted from 0."""
        if self._by_tokens is not None:
            name, nth = self._by_tokens[draw]
            return name, self._row(name, nth)
        periods, place = divmod(draw, len(self._period))
        name = self._period[place]
        return name, self._row(name, periods * self._drawn_in_period[name] + self._drawn_before[place])

    def _row(self, name: str, nth: int) -> int:
        """The row that a dataset's `nth` draw takes."""
        epoch, position = divmod(nth, len(self.datasets[name]))
        return shuffled(position, len(self.datasets[name]), f"{self._seed}/{name}/{epoch}")


def load_samples(
    dataset: str | DatasetConfig,
    base_dir: str | Path,
    cache_dir: Path | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
) -> Dataset:
    """Open a dataset, generating it first if it comes from a generator and is not cached.

    Args:
        dataset: A name in `datasets_cfg/`, the path of a YAML file, or what `load_dataset_config` gave.
        base_dir: The run's; against which the name, paths and plugin files are resolved.
        cache_dir: Where generated datasets are kept; `$POSTTRAIN_CACHE`, else `~/.cache/posttrain`.
        max_bad_share: Share of broken rows above which the dataset is refused.

    Raises:
        DataError: If the data cannot be found, generated or read, or too much of it is broken.
        ConfigError: If there is no such dataset.
        PluginError: If the generator cannot be found.
        DiskFull: If there is no space for a generated dataset.
    """
    base_dir = Path(base_dir)
    config = load_dataset_config(dataset, base_dir) if isinstance(dataset, str) else dataset
    cache = cache_dir or default_cache()
    if config.source.path is None:
        opened = _opened(_generated(config, base_dir, cache))
    elif (variable := missing_variable(config)) is not None:
        raise DataError(f"dataset {config.name}: set the environment variable {variable} of its path")
    else:
        try:
            opened = _located(locate(config, base_dir), cache)
        except DataError as error:
            raise DataError(f"dataset {config.name}: {error}") from error.__cause__
    _judge(config.name, opened, max_bad_share)
    return opened


def open_mixture(
    weights: Mapping[str, float],
    seed: int,
    base_dir: str | Path,
    cache_dir: Path | None = None,
    counter: TokenCounter | None = None,
) -> Mixture:
    """A mixture of datasets by name; raises as `load_samples` and `Mixture` do.

    Args:
        weights: By dataset.
        seed: Of the orders in which rows come.
        base_dir: The run's.
        cache_dir: See `load_samples`.
        counter: Counts the tokens of a sample, so that the shares are of tokens.
    """
    datasets = {name: load_samples(name, base_dir, cache_dir) for name in weights}
    if counter is None:
        return Mixture(datasets, weights, seed)
    cache = cache_dir or default_cache()
    lengths = {
        name: token_lengths(dataset, dataset.fingerprint, counter, cache)
        for name, dataset in datasets.items()
    }
    return Mixture(datasets, weights, seed, lengths)


def _located(source: Source, cache: Path) -> Dataset:
    """The rows at a path; those that are not canonical lines already are rewritten into the cache, once."""
    if source.as_it_stands:
        return _opened(source.path, source.image_root)
    final = cache / f"{source.config.name}-{source.identity()[:12]}"
    folder = cached_folder(final, lambda folder: prepare(source, folder, final))
    return _opened(folder / DATA, source.image_root, folder)


def _opened(path: Path, image_root: Path | None = None, prepared: Path | None = None) -> Dataset:
    """A file is read through once a process, unless it has changed."""
    return _opened_version(path, image_root, prepared, _version(path))


@functools.lru_cache(maxsize=32)
def _opened_version(
    path: Path, image_root: Path | None, prepared: Path | None, version: tuple[int, int]
) -> Dataset:
    if prepared is None:
        return Dataset(path, image_root)
    left_out = read_left_out(prepared)
    broken = [BrokenRow(place, reason) for place, reason in left_out.broken]
    return Dataset(path, image_root, prepared / PLACES, broken, sum(left_out.filtered))


def _version(path: Path) -> tuple[int, int]:
    """Size and time of the last change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _check_images(sample: Sample, checked: set[str]) -> None:
    for image in (image for message in sample.messages for image in message.images):
        if image.path not in checked:
            check_image(image.path)
            checked.add(image.path)


def _judge(name: str, dataset: Dataset, max_bad_share: float) -> None:
    """Tell of broken rows, and refuse a dataset with too many of them."""
    bad, total = len(dataset.broken), len(dataset.broken) + len(dataset)
    if not total:
        removed = f"; the filters removed {dataset.filtered:,}" if dataset.filtered else ""
        raise DataError(f"dataset {name}: {dataset.path} has no rows{removed}")
    if not bad:
        return
    quoted = "\n  ".join(str(row) for row in dataset.broken[:_QUOTED])
    found = f"dataset {name}: {bad:,} of {total:,} rows are broken"
    if bad > max_bad_share * total:
        raise DataError(
            f"{found}, more than {max_bad_share:.1%}; mend or remove them. The first:\n  {quoted}"
        )
    logger.warning("%s and were left out. The first:\n  %s", found, quoted)


def _generated(config: DatasetConfig, base_dir: Path, cache: Path) -> Path:
    """The `data.jsonl` of a generated dataset.

    Its folder's name tells the generator, its file's content and its params, so that a change of any of them
    makes a new one.
    """
    reference, params = config.source.generator or "", config.source.params
    generate: Any = resolve(reference, "posttrain.generators", base_dir)
    code = Path(getattr(inspect.getmodule(generate), "__file__", None) or os.devnull).read_bytes()
    identity = [__version__, reference, hashlib.sha256(code).hexdigest(), params]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()

    def make(folder: Path) -> None:
        generate(folder, **params)
        sync(folder / DATA)

    try:
        return cached_folder(cache / f"{config.name}-{digest[:12]}", make) / DATA
    except DiskFull:
        raise
    except Exception as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in params.items())
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"dataset {config.name}: {reference}({shown}) failed with {reason}") from error
