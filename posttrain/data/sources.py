"""Datasets on disk: find, generate or rewrite them, refuse those with many broken rows, and open mixtures."""

import functools
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from posttrain.config import DatasetConfig, load_dataset_config, missing_variable
from posttrain.config.data import Use
from posttrain.data.dataset import BrokenRow, Dataset, file_version
from posttrain.data.formats import REWRITTEN, DataError
from posttrain.data.lengths import TokenCounter, token_lengths
from posttrain.data.mixing import Mixture
from posttrain.data.prepared import DATA, PLACES, Source, locate, prepare, read_left_out
from posttrain.data.renderable import RowCheck, without_unrenderable
from posttrain.data.row_index import RowIndex
from posttrain.data.sealing import sealed_index
from posttrain.files.cache import cached_folder, default_cache
from posttrain.files.durable import DiskFull, sync
from posttrain.joints import Generator
from posttrain.plugins import resolve

logger = logging.getLogger(__name__)

#: Broken rows that an error or a warning quotes.
_QUOTED = 5
#: To be changed when generators are called in another way; a part of the names of what they wrote.
_GENERATED_FORMAT = "0.1.0"


def load_samples(
    dataset: str | DatasetConfig,
    base_dir: str | Path,
    cache_dir: Path | None = None,
    max_bad_share: float | None = None,
    use: Use = "prompts",
    look_again: bool = True,
    check: RowCheck | None = None,
) -> Dataset:
    """Open a dataset; the first process generates or rewrites it where that is needed, and checks it.

    Args:
        dataset: A name in `datasets_cfg/`, the path of a YAML file, or what `load_dataset_config` gave.
        base_dir: The run's; against which the name, paths and plugin files are resolved.
        cache_dir: Where generated datasets and indexes are kept; `$POSTTRAIN_CACHE`, else
            `~/.cache/posttrain`.
        max_bad_share: Share of broken rows above which the dataset is refused; the dataset's own if None.
        use: What its rows are used for (see `Dataset`).
        look_again: Whether to look, once a process, if images changed or broken rows were repaired since the
            check; workers leave that to the process that starts them.
        check: Tells which rows a model can be shown; the others are broken.

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
        rows = _generated(config, base_dir, cache)
        opened = _opened(_located(Source(rows, config, rows.parent), cache, look_again), use)
    elif (variable := missing_variable(config)) is not None:
        raise DataError(f"dataset {config.name}: set the environment variable {variable} of its path")
    else:
        try:
            opened = _opened(_located(locate(config, base_dir), cache, look_again), use)
        except DataError as error:
            raise DataError(f"dataset {config.name}: {error}") from error.__cause__
    if check is not None:
        opened = without_unrenderable(opened, check, cache)
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
    check: RowCheck | None = None,
) -> Mixture:
    """Open a mixture of datasets by name, as workers do; raises as `load_samples` and `Mixture` do.

    Args:
        weights: By dataset.
        seed: Of the orders in which rows come.
        base_dir: The run's.
        cache_dir: See `load_samples`.
        counter: Counts the tokens of a sample, so that the shares are of tokens.
        replaced: Datasets to open in place of those that a name stands for.
        use: What the rows are used for (see `Dataset`).
        check: Tells which rows a model can be shown; the others are broken.
    """
    datasets = {
        name: load_samples(
            replaced.get(name, name), base_dir, cache_dir, use=use, look_again=False, check=check
        )
        for name in weights
    }
    lengths = None if counter is None else row_lengths(datasets, counter, cache_dir)
    return Mixture(datasets, weights, seed, lengths)


def row_lengths(
    datasets: Mapping[str, Dataset], counter: TokenCounter, cache_dir: Path | None = None
) -> dict[str, Sequence[int]]:
    """Return the tokens of every row, by dataset; they are counted once (see `token_lengths`)."""
    cache = cache_dir or default_cache()
    return {
        name: token_lengths(dataset, f"{dataset.identity}/{dataset.use}", counter, cache)
        for name, dataset in datasets.items()
    }


@dataclass(frozen=True)
class _Opening:
    """All that an opened file depends on, but for its contents and its use.

    Attributes:
        path: A canonical file.
        image_root: What image paths are relative to; the file's folder if None.
        prepared: The folder that `prepare` filled, if the file lies in one.
        cache: Where indexes are kept.
        look_again: See `load_samples`.
    """

    path: Path
    image_root: Path | None
    prepared: Path | None
    cache: Path
    look_again: bool


def _located(source: Source, cache: Path, look_again: bool) -> _Opening:
    """Return how to open the rows at a path; unless they are canonical lines, they are first rewritten.

    So are canonical lines some of which hold their images themselves.
    """
    if source.as_it_stands:
        opening = _Opening(source.path, source.image_root, None, cache, look_again)
        faults = _index_version(opening, file_version(source.path)).faults
        if not any(fault.reason.startswith(REWRITTEN) for fault in faults):
            return opening
    final = cache / f"{source.config.name}-{source.identity()[:12]}"
    folder = cached_folder(final, lambda folder: prepare(source, folder, final))
    return _Opening(folder / DATA, source.image_root, folder, cache, look_again)


def _opened(opening: _Opening, use: Use) -> Dataset:
    """Open a file once a process, unless it has changed."""
    return _opened_version(opening, use, file_version(opening.path))


@functools.lru_cache(maxsize=32)
def _opened_version(opening: _Opening, use: Use, version: tuple[int, int]) -> Dataset:
    index = _index_version(opening, version)
    if opening.prepared is None:
        return Dataset(index, use)
    left_out = read_left_out(opening.prepared)
    broken = [BrokenRow(place, reason) for place, reason in left_out.broken]
    return Dataset(index, use, opening.prepared / PLACES, broken, sum(left_out.filtered))


@functools.lru_cache(maxsize=32)
def _index_version(opening: _Opening, version: tuple[int, int]) -> RowIndex:
    return sealed_index(opening.path, opening.image_root, opening.cache, opening.look_again)


def forget_opened() -> None:
    """Have this process look at every dataset anew, as another process would."""
    _opened_version.cache_clear()
    _index_version.cache_clear()


def _judge(name: str, dataset: Dataset, max_bad_share: float) -> None:
    """Warn of broken rows, and refuse a dataset with too many of them."""
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
    """Return the `data.jsonl` of a generated dataset, which is generated where it is not cached.

    Its folder's name tells the generator, its file's content and its params, so that a change of any of them
    makes a new one.
    """
    reference, params = config.source.generator or "", config.source.params
    generate = resolve(reference, "posttrain.generators", Generator, base_dir)
    code = Path(getattr(inspect.getmodule(generate), "__file__", None) or os.devnull).read_bytes()
    identity = [_GENERATED_FORMAT, reference, hashlib.sha256(code).hexdigest(), params]
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
