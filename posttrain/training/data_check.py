"""The check of a run's data before anything starts: are they whole, and those that the run began with?"""

import json
import os
from concurrent.futures import ThreadPoolExecutor

from posttrain.config import RunConfig
from posttrain.data.sources import load_samples
from posttrain.files.durable import write_atomic
from posttrain.run.directory import RunDir

#: In a run's directory: a line for each row that was left out, as `{"dataset", "place", "reason"}`.
BROKEN_ROWS = "broken_rows.jsonl"


def check_run_data(config: RunConfig, run: RunDir) -> None:
    """Check every dataset of a run, of finished stages and of evaluations too, and list the broken rows.

    What was checked before is only looked at: other processes then open the indexes that this one leaves.

    Raises:
        DataError: If a dataset cannot be had, or more of it is broken than its `max_bad_share`.
        ChangedRun: If one is not what it was when the run began.
        DiskFull: If there is no space for the list.
    """
    uses = list(dict.fromkeys((each.name, each.use) for each in config.datasets()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # pictures are packed and read outside of Python's lock
        opened = pool.map(lambda each: load_samples(each[0], config.base_dir, use=each[1]), uses)
        datasets = dict(zip(uses, opened, strict=True))
    run.check_data({name: dataset.fingerprint for (name, _), dataset in datasets.items()})
    broken = [
        {"dataset": name, "place": row.place, "reason": row.reason}
        for (name, _), dataset in sorted(datasets.items())
        for row in dataset.broken
    ]
    write_atomic(run.path / BROKEN_ROWS, "".join(json.dumps(row) + "\n" for row in broken))
