"""Datasets on disk: find or generate them, set broken rows aside, and mix them in exact shares."""

import array
import functools
import hashlib
import inspect
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.config import DatasetConfig, load_dataset_config, missing_variable
from posttrain.data.formats import DataError, parse_row, rows
from posttrain.data.mixing import schedule, shuffled
from posttrain.durable import DiskFull, explaining_full_disk, sync
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
        fingerprint: SHA-256 of the file.
        broken: The rows set aside, with place and reason.

    Example:
        dataset = Dataset(Path("train.jsonl"))
        dataset[0].messages
    """

    def __init__(self, path: Path):
        """Read the whole file once: every row is parsed, and every image checked.

        Raises:
            DataError: If the file cannot be read.
        """
        self.path = path.absolute()
        self.broken: list[BrokenRow] = []
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
                return parse_row(file.readline(), self.path.parent)
        except OSError as error:
            raise DataError(f"{self.path}:{line} cannot be read: {error.strerror}") from error
        except DataError as error:
            raise DataError(f"{self.path}:{line}: {error}") from None

    def _scan(self, file: Any) -> None:
        ids: set[str] = set()
        images: set[str] = set()
        for line, offset, content in rows(file):
            try:
                sample = parse_row(content, self.path.parent)
                if sample.id in ids:
                    raise DataError(f"the id {sample.id!r} is an earlier row's")
                _check_images(sample, images)
            except (DataError, ImageError) as error:
                self.broken.append(BrokenRow(f"{self.path}:{line}", str(error)))
                continue
            ids.add(sample.id)
            self._offsets.append(offset)
            self._lines.append(line)


class Mixture:
    """An endless draw from several datasets in exact shares; a pure function of the draw's number.

    After any number of draws, each dataset's count is less than one off its share. Each dataset is
    gone through in a new order every epoch, so no row comes a second time before all have come once.
    There is no state: to resume is to go on with the next number.

    Attributes:
        datasets: By name.

    Example:
        mixture = Mixture({"zoom": zoom, "list": listing}, {"zoom": 0.75, "list": 0.25}, seed=0)
        name, row = mixture.index(1000)
        sample = mixture.datasets[name][row]
    """

    def __init__(self, datasets: Mapping[str, Dataset], weights: Mapping[str, float], seed: int):
        """Lay out one period of the draw.

        Args:
            datasets: By name; none may be empty.
            weights: By the same names; positive, and need not sum to 1.
            seed: Of the orders in which rows come.

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
        periods, place = divmod(draw, len(self._period))
        name = self._period[place]
        of_dataset = periods * self._drawn_in_period[name] + self._drawn_before[place]
        epoch, position = divmod(of_dataset, len(self.datasets[name]))
        return name, shuffled(position, len(self.datasets[name]), f"{self._seed}/{name}/{epoch}")


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
    if config.source.path is not None:
        variable = missing_variable(config)
        if variable is not None:
            raise DataError(f"dataset {config.name}: set the environment variable {variable} of its path")
        path = base_dir / config.source.path
    else:
        path = _generated(config, base_dir, cache_dir or _default_cache())
    if not path.is_file():
        raise DataError(f"dataset {config.name}: {path} is not a file; set source.path to a JSONL file")
    opened = _opened(path, _version(path))
    _judge(config.name, opened, max_bad_share)
    return opened


def open_mixture(
    weights: Mapping[str, float], seed: int, base_dir: str | Path, cache_dir: Path | None = None
) -> Mixture:
    """A mixture of datasets by name; raises as `load_samples` and `Mixture` do."""
    datasets = {name: load_samples(name, base_dir, cache_dir) for name in weights}
    return Mixture(datasets, weights, seed)


@functools.lru_cache(maxsize=32)
def _opened(path: Path, version: tuple[int, int]) -> Dataset:
    """A file is read through once a process, unless it has changed (`version`)."""
    return Dataset(path)


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
        raise DataError(f"dataset {name}: {dataset.path} has no rows")
    if not bad:
        return
    quoted = "\n  ".join(str(row) for row in dataset.broken[:_QUOTED])
    found = f"dataset {name}: {bad:,} of {total:,} rows are broken"
    if bad > max_bad_share * total:
        raise DataError(
            f"{found}, more than {max_bad_share:.1%}; mend or remove them. The first:\n  {quoted}"
        )
    logger.warning("%s and were left out. The first:\n  %s", found, quoted)


def _default_cache() -> Path:
    return Path(os.environ.get("POSTTRAIN_CACHE") or "~/.cache/posttrain").expanduser().absolute()


def _generated(config: DatasetConfig, base_dir: Path, cache_dir: Path) -> Path:
    """The `data.jsonl` of a generated dataset.

    It is made under a temporary name and renamed, so that it is complete or absent; of several processes
    that make it at once, the first to finish wins. The folder's name tells the generator, its file's
    content and its params, so that a change of any of them makes a new one.
    """
    reference, params = config.source.generator or "", config.source.params
    generate: Any = resolve(reference, "posttrain.generators", base_dir)
    code = Path(getattr(inspect.getmodule(generate), "__file__", None) or os.devnull).read_bytes()
    identity = [__version__, reference, hashlib.sha256(code).hexdigest(), params]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    final = cache_dir / f"{config.name}-{digest[:12]}"
    if final.is_dir():
        return final / "data.jsonl"
    temporary = cache_dir / f".{final.name}-{uuid.uuid4().hex}.tmp"
    try:
        with explaining_full_disk(final):
            temporary.mkdir(parents=True)
            generate(temporary, **params)
            sync(temporary / "data.jsonl")
        _settle(temporary, final)
    except DiskFull:
        raise
    except Exception as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in params.items())
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"dataset {config.name}: {reference}({shown}) failed with {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final / "data.jsonl"


def _settle(temporary: Path, final: Path) -> None:
    """Give a finished folder its name, unless another process was faster."""
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    sync(final.parent)
