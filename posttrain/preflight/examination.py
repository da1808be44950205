"""What can be known to fail before a run starts: missing files, plugins that do not load, wrong golds.

Nothing is started and no torch is loaded, so `posttrain validate` answers at once.
"""

import contextlib
import importlib.util
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config import (
    ConfigError,
    DatasetConfig,
    Document,
    Problem,
    RunConfig,
    TaskConfig,
    load_dataset_config,
    missing_variable,
)
from posttrain.config.curation import load_curation
from posttrain.config.document import Key, key_text
from posttrain.config.nearest import did_you_mean
from posttrain.config.stage import CurationUse
from posttrain.data.formats import DataError, read_canonical
from posttrain.joints import Plugins, Reward
from posttrain.plugins import resolve
from posttrain.types import RewardInput, Sample, text_message

#: Rows of a task's dataset that are looked at, and whose gold answers are tried on the task's rewards.
GOLD_ROWS = 32


@dataclass
class Findings:
    """What an examination brought to light.

    Attributes:
        problems: What will make the run fail.
        missing_data: Datasets whose folder is named by an environment variable that is not set here; a
            recipe is valid without them, but cannot start.
        notes: What happens otherwise than one might think.
    """

    problems: list[Problem] = field(default_factory=list)
    missing_data: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(config: RunConfig, document: Document, plugins: Plugins) -> Findings:
    """Look for everything that can be known to fail.

    Args:
        config: The run.
        document: What it was built from; tells the file and line of each key.
        plugins: Load its rewards and tools.
    """
    return _Examination(config, document, plugins).run()


class _Examination:
    """One look at one run."""

    def __init__(self, config: RunConfig, document: Document, plugins: Plugins):
        self.config = config
        self.plugins = plugins
        self.document = document
        self.base_dir = Path(config.base_dir)
        self.findings = Findings()
        #: Datasets whose rows are not there yet.
        self.ungauged: list[str] = []

    def run(self) -> Findings:
        """Look at data, tasks, plugins and model, in this order."""
        config, datasets = self.config, {}
        for use in config.datasets():
            if use.name not in datasets:
                datasets[use.name] = self.dataset(use.name, use.key)
        for index, stage in enumerate(config.stages):
            place = ("stages", index)
            for curation in stage.curations():
                self.curation(curation, (*place, *curation.key))
            for package in stage.packages():
                if importlib.util.find_spec(package.module) is None:
                    remedy = f"pip install 'posttrain[{package.extra}]', or remove the key"
                    reason = f"{package.module} is not installed"
                    self.findings.problems.append(self.problem((*place, *package.key), reason, remedy))
        for task in config.tasks():
            self.task(task.task, datasets[task.task.data], task.key)
        if self.ungauged:
            names = ", ".join(dict.fromkeys(self.ungauged))
            self.findings.notes.append(
                f"gold answers are not tried here of what is generated when the run starts: {names}"
            )
        others = [(each.role, each.name) for stage in config.stages for each in stage.checkpoints()]
        for role, model in (("model", config.model.name_or_path), *others):
            if model is not None and not Path(model).is_dir():
                self.findings.notes.append(
                    f"{role}: {model} is not on this machine; it is fetched from the hub at the start"
                )
        return self.findings

    def problem(self, key: Key, reason: str, remedy: str = "") -> Problem:
        """A problem with the place of its key."""
        return Problem(self.document.place(key), key_text(key), reason, remedy)

    def attempt(self, key: Key, function: Any, *arguments: Any) -> Any:
        """Call something that may refuse its arguments; a refusal becomes a problem at `key`."""
        try:
            return function(*arguments)
        except ValueError as error:
            self.findings.problems.append(self.problem(key, str(error)))
            return None

    def dataset(self, name: str, key: Key) -> DatasetConfig | None:
        """Load a dataset's YAML and look whether its source is there."""
        try:
            dataset = load_dataset_config(name, self.base_dir)
        except ConfigError as error:
            self.problems_of(error, name, key)
            return None
        if dataset.source.generator is not None:
            self.attempt(key, _check_generator, dataset, self.base_dir)
        elif variable := missing_variable(dataset):
            reason = f"dataset {name!r} is not on this machine: {dataset.source.path}"
            remedy = f"set the environment variable {variable} to the folder of the data"
            self.findings.missing_data.append(self.problem(key, reason, remedy))
        elif not (path := Path(str(dataset.source.path))).exists():
            near = did_you_mean(path.name, (other.name for other in path.parent.glob("*.json*")))
            remedy = near or "correct source.path in the dataset's YAML"
            self.findings.problems.append(
                self.problem(key, f"dataset {name!r}: there is no file or folder {path}", remedy)
            )
        return dataset

    def problems_of(self, error: ConfigError, name: str, key: Key) -> None:
        """The problems of a file that a key names, told at the key."""
        for found in error.problems:
            reason = (
                f"{found.where}: {found.key}: {found.reason}" if found.key else f"{found.reason} as {name!r}"
            )
            self.findings.problems.append(self.problem(key, reason, found.remedy))

    def curation(self, use: CurationUse, key: Key) -> None:
        """Load a stage's curation recipe, and look whether the stage learns from what it curates."""
        name = use.recipe
        try:
            recipe = load_curation(name, self.base_dir)
        except ConfigError as error:
            self.problems_of(error, name, key)
            return
        if recipe.data not in use.datasets:
            reason = f"the recipe {name!r} curates {recipe.data!r}, which is not in the stage's mixture"
            self.findings.problems.append(
                self.problem(key, reason, "put it in data.mixture, or choose another recipe")
            )

    def task(self, task: TaskConfig, dataset: DatasetConfig | None, key: Key) -> None:
        """Load a task's tools and rewards, and try the rewards on gold answers where the data are on disk."""
        for index, tool in enumerate(task.tools):
            self.attempt((*key, "tools", index), self.plugins.load_tools, [tool.model_dump()], self.base_dir)
        rewards: list[tuple[Reward, dict[str, Any]]] = []
        for index, ref in enumerate(task.rewards):
            place = (*key, "rewards", index)
            reward = self.attempt(place, self.plugins.load_reward, ref.name, self.base_dir)
            if reward is not None:
                self.attempt(place, reward.check, ref.params)
                if not (reward.is_async or reward.group):  # those ask a service, or compare episodes
                    rewards.append((reward, ref.params))
        if dataset is None or dataset.source.path is None:
            if dataset is not None and rewards:
                self.ungauged.append(dataset.name)
        elif Path(dataset.source.path).exists():
            self.attempt((*key, "data"), _refuse_videos, dataset)
            if rewards and not self.findings.problems:
                self.attempt((*key, "rewards"), _check_golds, dataset, rewards)


def _check_generator(dataset: DatasetConfig, base_dir: Path) -> None:
    """Refuse a generator that is not there, or params that it does not take.

    Raises:
        ValueError: Naming what it takes.
    """
    generator: Any = resolve(str(dataset.source.generator), "posttrain.generators", object, base_dir)
    signature = inspect.signature(generator)
    try:
        signature.bind(Path(), **dataset.source.params)
    except TypeError as error:
        takes = ", ".join(list(signature.parameters)[1:])
        raise ValueError(f"dataset {dataset.name!r}: source.params: {error} (it takes: {takes})") from None


def _first_rows(dataset: DatasetConfig) -> Iterator[Sample]:
    """The first rows of a dataset on disk, whatever its form; raises DataError if they cannot be read."""
    path = Path(str(dataset.source.path))
    if dataset.as_it_stands and path.suffix == ".jsonl" and path.is_file():
        return itertools.islice(read_canonical(path), GOLD_ROWS)
    # By reference, so that Arrow is loaded only for those who need it.
    first_samples: Any = resolve("posttrain.data.prepared:first_samples", "posttrain.data", object)
    return first_samples(dataset, GOLD_ROWS)


def _refuse_videos(dataset: DatasetConfig) -> None:
    """Rollouts and evaluations show texts and images.

    Raises:
        ValueError: Naming the first row that shows a video.
    """
    with contextlib.suppress(DataError):  # whether too many rows are broken is asked when the run starts
        for sample in _first_rows(dataset):
            if any(message.videos for message in sample.messages):
                shown = "shows a video; rollouts and evaluations show texts and images only"
                raise ValueError(f"{dataset.source.path}: row {sample.id!r} {shown}")


def _check_golds(dataset: DatasetConfig, rewards: list[tuple[Reward, dict[str, Any]]]) -> None:
    """A gold answer must earn full marks from at least one of its task's rewards.

    A ground truth that is no text, such as boxes, must only be one that the rewards can read.

    Raises:
        ValueError: Naming the first row whose gold does not.
        DataError: If the rows cannot be read.
    """
    path = dataset.source.path
    for sample in _first_rows(dataset):
        if sample.ground_truth in (None, []):
            continue
        try:
            earned = [_earned(sample, reward, params) for reward, params in rewards]
        except DataError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path}: row {sample.id!r}: a reward failed on the gold answer: {error}"
            ) from error
        if not any(earned) and isinstance(_first(sample.ground_truth), str | int | float):
            raise ValueError(
                f"{path}: row {sample.id!r}: the gold answer {str(sample.ground_truth)[:60]!r} earns full "
                "marks from no reward of the task, so nothing could be learned from it"
            )


def _earned(sample: Sample, reward: Reward, params: dict[str, Any]) -> bool:
    """Whether a sample's own ground truth, given as the answer, earns a reward's full marks."""
    gold = str(_first(sample.ground_truth))
    score = reward(
        RewardInput(
            prompt=sample.messages,
            response=(text_message("assistant", gold),),
            answer=gold,
            ground_truth=sample.ground_truth,
            columns=sample.columns,
        ),
        **params,
    )
    return score is not None and score.value >= reward.high


def _first(ground_truth: Any) -> Any:
    """One of several golds, or the only one."""
    return ground_truth[0] if isinstance(ground_truth, list) else ground_truth
