"""Datasets on disk: find, generate or rewrite them, set broken rows aside, and mix them in exact shares."""

import array
import functools
import hashlib
import inspect
import itertools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from posttrain import __version__
from posttrain.config import DatasetConfig, load_dataset_config, missing_variable
from posttrain.data.cache import cached_folder, default_cache
from posttrain.data.formats import DataError, parse_row, rows
from posttrain.data.lengths import TokenCounter, token_lengths
from posttrain.data.mixing import PeriodicSchedule, TokenSchedule, shuffled
from posttrain.data.prepared import DATA, PLACES, Source, locate, prepare, read_left_out
from posttrain.durable import DiskFull, sync
from posttrain.images import ImageError, check_image
from posttrain.plugins import resolve
from posttrain.types import Sample, VideoRef
from posttrain.videos import VideoError, check_video, video_hash

logger = logging.getLogger(__name__)

#: What the rows of a dataset are used for, and so what each of them must have.
Use = Literal["prompts", "episodes", "dialogues", "pairs"]
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
        fingerprint: SHA-256 of the file, and of the images that it names.
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
        use: Use = "prompts",
    ):
        """Read the whole file once: every row is parsed, every image and video checked.

        Args:
            path: A canonical file.
            image_root: What image paths are relative to; the file's folder if None.
            places: Of a rewritten file, which line says where each line came from.
            broken: Rows that were set aside before the file was written.
            filtered: Number of rows that filters removed before.
            use: A row that cannot be used so is broken: `dialogues` have an assistant's turn to learn from,
                `pairs` have `chosen` and `rejected`, `episodes` show no videos.

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
                digest: Any = hashlib.file_digest(file, "sha256")
                file.seek(0)
                self._scan(file, use, digest.update)
                self.fingerprint: str = digest.hexdigest()
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

    def _scan(self, file: Any, use: Use, update: Callable[[bytes], object]) -> None:
        ids: set[str] = set()
        images: set[str | VideoRef] = set()
        for line, offset, content in rows(file):
            try:
                sample = parse_row(content, self.image_root)
                if sample.id in ids:
                    raise DataError(f"the id {sample.id!r} is an earlier row's")
                _check_media(sample, images, update)
                _check_use(sample, use)  # last: the digest does not depend on it
            except (DataError, ImageError, VideoError) as error:
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
        rows: Mapping[str, Sequence[int]] | None = None,
    ):
        """Lay out one period of the draw.

        Args:
            datasets: By name; none may be empty.
            weights: By the same names; positive, and need not sum to 1.
            seed: Of the orders in which rows come.
            lengths: By dataset, the tokens of each row; the shares are then of tokens, not of samples.
            rows: By dataset, those that are drawn; all if None.

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
        self._rows = rows or {name: range(len(dataset)) for name, dataset in datasets.items()}
        self._schedule: PeriodicSchedule | TokenSchedule = PeriodicSchedule(weights)
        if lengths is not None:
            self._schedule = TokenSchedule(weights, lambda name, nth: lengths[name][self._row(name, nth)])

    def __len__(self) -> int:
        """Rows of all datasets together."""
        return sum(len(dataset) for dataset in self.datasets.values())

    def index(self, draw: int) -> tuple[str, int]:
        """Dataset and row of a draw, counted from 0."""
        name, nth = self._schedule[draw]
        return name, self._row(name, nth)

    def max_length(self, draw: int) -> int | None:
        """Most tokens of a sample of the draw's stretch, where that is less than elsewhere."""
        return None

    def _row(self, name: str, nth: int) -> int:
        """The row that a dataset's `nth` draw takes."""
        epoch, position = divmod(nth, len(self._rows[name]))
        return self._rows[name][shuffled(position, len(self._rows[name]), f"{self._seed}/{name}/{epoch}")]


def load_samples(
    dataset: str | DatasetConfig,
    base_dir: str | Path,
    cache_dir: Path | None = None,
    max_bad_share: float | None = None,
    use: Use = "prompts",
) -> Dataset:
    """Open a dataset, generating it first if it comes from a generator and is not cached.

    Args:
        dataset: A name in `datasets_cfg/`, the path of a YAML file, or what `load_dataset_config` gave.
        base_dir: The run's; against which the name, paths and plugin files are resolved.
        cache_dir: Where generated datasets are kept; `$POSTTRAIN_CACHE`, else `~/.cache/posttrain`.
        max_bad_share: Share of broken rows above which the dataset is refused; the dataset's own if None.
        use: What its rows are used for (see `Dataset`).

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
        opened = _opened(use, _generated(config, base_dir, cache))
    elif (variable := missing_variable(config)) is not None:
        raise DataError(f"dataset {config.name}: set the environment variable {variable} of its path")
    else:
        try:
            opened = _located(use, locate(config, base_dir), cache)
        except DataError as error:
            raise DataError(f"dataset {config.name}: {error}") from error.__cause__
    _judge(config.name, opened, config.max_bad_share if max_bad_share is None else max_bad_share)
    return opened


def open_mixture(
    weights: Mapping[str, float],
    seed: int,
    base_dir: str | Path,
    cache_dir: Path | None = None,
    counter: TokenCounter | None = None,
    replaced: Mapping[str, DatasetConfig] = MappingProxyType({}),
    use: Use = "prompts",
) -> Mixture:
    """A mixture of datasets by name; raises as `load_samples` and `Mixture` do.

    Args:
        weights: By dataset.
        seed: Of the orders in which rows come.
        base_dir: The run's.
        cache_dir: See `load_samples`.
        counter: Counts the tokens of a sample, so that the shares are of tokens.
        replaced: Datasets to open in place of those that a name stands for.
        use: What the rows are used for (see `Dataset`).
    """
    datasets = {
        name: load_samples(replaced.get(name, name), base_dir, cache_dir, use=use) for name in weights
    }
    lengths = None if counter is None else row_lengths(datasets, counter, cache_dir)
    return Mixture(datasets, weights, seed, lengths)


def row_lengths(
    datasets: Mapping[str, Dataset], counter: TokenCounter, cache_dir: Path | None = None
) -> dict[str, Sequence[int]]:
    """The tokens of every row, by dataset; counted once, then kept in the cache (see `token_lengths`)."""
    cache = cache_dir or default_cache()
    return {
        name: token_lengths(dataset, dataset.fingerprint, counter, cache)
        for name, dataset in datasets.items()
    }


def _located(use: Use, source: Source, cache: Path) -> Dataset:
    """The rows at a path; those that are not canonical lines already are rewritten into the cache, once."""
    if source.as_it_stands:
        return _opened(use, source.path, source.image_root)
    final = cache / f"{source.config.name}-{source.identity()[:12]}"
    folder = cached_folder(final, lambda folder: prepare(source, folder, final))
    return _opened(use, folder / DATA, source.image_root, folder)


def _opened(use: Use, path: Path, image_root: Path | None = None, prepared: Path | None = None) -> Dataset:
    """A file is read through once a process, unless it has changed."""
    return _opened_version(use, path, image_root, prepared, _version(path))


@functools.lru_cache(maxsize=32)
def _opened_version(
    use: Use, path: Path, image_root: Path | None, prepared: Path | None, version: tuple[int, int]
) -> Dataset:
    if prepared is None:
        return Dataset(path, image_root, use=use)
    left_out = read_left_out(prepared)
    broken = [BrokenRow(place, reason) for place, reason in left_out.broken]
    return Dataset(path, image_root, prepared / PLACES, broken, sum(left_out.filtered), use)


def _version(path: Path) -> tuple[int, int]:
    """Size and time of the last change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _check_use(sample: Sample, use: Use) -> None:
    if use == "pairs" and not sample.chosen:
        raise DataError('a preference pair needs both "chosen" and "rejected"')
    if use == "dialogues" and all(message.role != "assistant" for message in sample.messages):
        raise DataError("the dialogue has no assistant message to learn from")
    if use == "episodes" and any(message.videos for message in sample.messages):
        raise DataError("the prompt shows a video; rollouts and evaluations show texts and images only")


def _check_media(sample: Sample, checked: set[str | VideoRef], update: Callable[[bytes], object]) -> None:
    """Check the images and videos that no earlier row has, and add their content to a digest."""
    turns = (*sample.messages, *sample.chosen, *sample.rejected)
    for image in (image for message in turns for image in message.images):
        if image.path not in checked:
            check_image(image.path)
            checked.add(image.path)
            with Path(image.path).open("rb") as file:
                update(hashlib.file_digest(file, "sha256").digest())
    for video in (video for message in turns for video in message.videos):
        if video not in checked:
            check_video(video)
            checked.add(video)
            update(video_hash(video).encode())


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
