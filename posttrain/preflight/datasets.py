"""The datasets of a run: are they there, and can their first rows be used for what they are used for?"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config import DatasetConfig, load_dataset_config, missing_variable
from posttrain.config.document import Key
from posttrain.config.hub import how_to_fetch, is_address
from posttrain.config.stage import DatasetUse
from posttrain.data.formats import DataError, rows
from posttrain.data.prepared import FirstRow, first_rows
from posttrain.data.uses import MISFITS, fits, refusal, repeated_id, too_few_rows
from posttrain.files.nearest import did_you_mean
from posttrain.plugins import misfit, resolve
from posttrain.preflight.findings import Examination
from posttrain.types import Sample

#: Rows of a dataset that are looked at, from its beginning.
FIRST_ROWS = 32
#: Rows of larger files are not counted.
MAX_COUNTED_BYTES = 64 << 20


@dataclass(frozen=True)
class Dataset:
    """A dataset whose YAML is right.

    Attributes:
        config: What the YAML says.
        is_here: Whether its rows are on this machine.
    """

    config: DatasetConfig
    is_here: bool

    @property
    def is_generated(self) -> bool:
        """Whether its rows are made when the run starts."""
        return self.config.source.path is None

    @property
    def path(self) -> Path:
        """Where its rows are, of a dataset that has a path."""
        return Path(str(self.config.source.path))

    @property
    def can_be_counted(self) -> bool:
        """Whether counting the rows is a matter of counting the lines of a file that is not large."""
        path = self.path
        plain = self.config.as_it_stands and path.is_file() and path.suffix == ".jsonl"
        return plain and path.stat().st_size <= MAX_COUNTED_BYTES

    def first_rows(self) -> Iterator[FirstRow]:
        """Read its first rows; none if they are not here.

        Raises:
            DataError: If it cannot be read at all.
        """
        return first_rows(self.config, FIRST_ROWS) if self.is_here else iter(())

    def first_samples(self) -> Iterator[Sample]:
        """Read those of its first rows that are good."""
        return (row.sample for row in self.first_rows() if row.sample is not None)


def examine_dataset(look: Examination, name: str, key: Key) -> Dataset | None:
    """Load a dataset's YAML and look whether its source is there; None if something is wrong."""
    config = look.load(key, name, load_dataset_config, name, look.base_dir)
    if config is None:
        return None
    if config.source.generator is not None:
        look.attempt(key, _check_generator, config, look.base_dir)
        return Dataset(config, is_here=False)
    dataset = Dataset(config, is_here=False)
    if variable := missing_variable(config):
        remedy = f"set the environment variable {variable} to the folder of the data"
        look.missing(key, f"dataset {name!r} is not on this machine: {config.source.path}", remedy)
        return dataset
    path = dataset.path
    if not path.exists():
        near = did_you_mean(path.name, (other.name for other in path.parent.glob("*.json*")))
        written = str(config.source.path)
        remedy = near or how_to_fetch(written) or "correct source.path in the dataset's YAML"
        shown = written if is_address(written) else path
        look.problem(key, f"dataset {name!r}: there is no file or folder {shown}", remedy)
        return dataset
    return Dataset(config, is_here=True)


def examine_rows(look: Examination, dataset: Dataset, use: DatasetUse) -> None:
    """Look whether the first rows of a dataset can be used as a stage or an evaluation uses them."""
    if not dataset.is_here:
        return
    try:
        found = list(dataset.first_rows())
    except DataError as error:
        look.problem(use.key, str(error))
        return
    is_whole = len(found) < FIRST_ROWS
    good, faults = _judge(look, found, use)
    total = len(good) + len(faults)
    if is_whole and not total:
        removed = f"; the filters remove all {len(found)}" if found else ""
        look.problem(use.key, f"dataset {use.name}: {dataset.path} has no rows{removed}")
    elif _too_many(dataset, good, faults, is_whole):
        remedy = f"correct or remove it; {len(faults)} of the first {total} rows cannot be used"
        look.problem(use.key, faults[0], remedy)
    elif reason := next(filter(None, (_refusal(use, row) for row in good)), ""):
        look.problem(use.key, reason)
    elif use.taken and (count := _count(dataset, len(good), is_whole, use.taken)) < use.taken:
        look.problem(use.key, too_few_rows(use.taken_by, use.name, use.taken, count))


def _too_many(dataset: Dataset, good: Sequence[FirstRow], faults: Sequence[str], is_whole: bool) -> bool:
    """Tell whether the first rows alone have more faults than the whole dataset may have."""
    share = dataset.config.max_bad_share
    if not faults or is_whole:
        return len(faults) > share * (len(good) + len(faults))
    if not dataset.can_be_counted:
        return not good
    enough = math.ceil(len(faults) / share) if share else 0
    return not enough or _count(dataset, len(good), is_whole, enough) < enough


def _judge(look: Examination, found: Sequence[FirstRow], use: DatasetUse) -> tuple[list[FirstRow], list[str]]:
    """Divide rows into those that a run would use, and the faults of those that it would leave out."""
    good: list[FirstRow] = []
    faults: list[str] = []
    ids: set[str] = set()
    for row in found:
        reason = row.error
        if row.sample is not None and row.sample.id in ids:
            reason = repeated_id(row.sample.id)
        elif row.sample is not None and not fits(row.sample, use.use):
            reason = MISFITS[use.use]
        elif row.sample is not None:
            reason = _unknown_tool(look, use, row.sample)
        if reason:
            faults.append(f"{row.place}: {reason}")
        elif row.sample is not None:
            good.append(row)
            ids.add(row.sample.id)
    return good, faults


def _unknown_tool(look: Examination, use: DatasetUse, sample: Sample) -> str:
    """Return why a tool that a row names cannot be found; "" if all can. Episodes have their task's tools."""
    names = [tool for tool in sample.tools if isinstance(tool, str)]
    try:
        look.plugins.load_tools([{"name": name} for name in names if use.use != "episodes"])
    except ValueError as error:
        return str(error)
    return ""


def _refusal(use: DatasetUse, row: FirstRow) -> str:
    """Return why a whole row stops the stage that uses it; "" if it does not."""
    assert row.sample is not None
    reason = refusal(row.sample, use.refused)
    return f"{row.place}: {reason}" if reason else ""


def _count(dataset: Dataset, good: int, is_whole: bool, most: int) -> int:
    """Count the rows of a dataset up to a number, which is also the answer where it would take too long."""
    if is_whole:
        return good
    if not dataset.can_be_counted:
        return most
    with dataset.path.open("rb") as file:
        return sum(1 for _ in itertools.islice(rows(file), most))


def _check_generator(config: DatasetConfig, base_dir: Path) -> None:
    """Refuse a generator that is not there, or params that it does not take.

    Raises:
        ValueError: Naming what it takes.
    """
    generator = resolve(str(config.source.generator), "posttrain.generators", object, base_dir)
    if not callable(generator):
        raise ValueError(f"dataset {config.name!r}: {config.source.generator} is no function")
    if reason := misfit(generator, config.source.params):
        raise ValueError(f"dataset {config.name!r}: source.{reason}")
