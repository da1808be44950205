"""Check a run's data before anything starts: whether they are whole, and the same as at its beginning."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

from posttrain.config import RunConfig, load_dataset_config
from posttrain.config.data import Use
from posttrain.data.dataset import Dataset
from posttrain.data.sources import load_samples
from posttrain.files.durable import write_atomic
from posttrain.rendering.row_checks import KnownRenderer, RenderCheck, local_checkpoint
from posttrain.run.directory import RunDir

#: In a run's directory: a line for each row that was left out, as `{"dataset", "place", "reason"}`.
BROKEN_ROWS = "broken_rows.jsonl"


def check_run_data(config: RunConfig, run: RunDir) -> None:
    """Check every dataset of a run, those of finished stages and evaluations too; list the broken rows.

    Broken are also those that the run's model cannot be shown, where the model is on this machine; else that
    is seen when a stage starts. A dataset that was checked before is not read again: there is an index of
    it, which other processes open.

    Raises:
        DataError: If a dataset cannot be read, or a larger share of its rows is broken than `max_bad_share`.
        ChangedRun: If a dataset has changed since the run began.
        DiskFull: If there is no space for the list.
    """
    local = local_checkpoint(config.model)
    renderer = None if local is None else KnownRenderer(local, config.model)
    uses = list(dict.fromkeys((each.name, each.use) for each in config.datasets()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # pictures are packed and read outside of Python's lock
        opened = pool.map(lambda each: _opened(config, each[0], each[1], renderer), uses)
        datasets = dict(zip(uses, opened, strict=True))
    fingerprints = {name: dataset.fingerprint for (name, _), dataset in datasets.items()}
    licences = {name: load_dataset_config(name, config.base_dir).licence for name in fingerprints}
    run.check_data(fingerprints, licences)
    broken = [
        {"dataset": name, "place": row.place, "reason": row.reason}
        for (name, _), dataset in sorted(datasets.items())
        for row in dataset.broken
    ]
    write_atomic(run.path / BROKEN_ROWS, "".join(json.dumps(row) + "\n" for row in broken))


def _opened(config: RunConfig, name: str, use: Use, renderer: KnownRenderer | None) -> Dataset:
    """Open a dataset, without the rows that a model cannot be shown."""
    check = None if renderer is None else RenderCheck(renderer, use)
    return load_samples(name, config.base_dir, use=use, check=check)
