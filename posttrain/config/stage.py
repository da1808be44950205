"""What a stage's config says about the stage, for every kind of stage.

A kind of stage is one config class, derived from `StageConfig` or `LearningStage`, and one runner, which its
`runner` names. Everything else (validation, the check of data, batch arithmetic, the memory estimate, the
pipeline) asks the stage and knows no kinds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from pydantic import Field

from posttrain.config.base import MisfitError, Name, Positive, Section
from posttrain.config.data import Use
from posttrain.config.document import Key
from posttrain.config.endpoints import EndpointConfig
from posttrain.config.memory import LearnerLoad
from posttrain.config.packages import PackageUse
from posttrain.config.rollout import RolloutConfig
from posttrain.config.tasks import TaskConfig

#: What a row may have besides text, and some uses cannot handle.
Content = Literal["images", "videos", "tools"]


@dataclass(frozen=True)
class DatasetUse:
    """A dataset as a stage or an evaluation uses it.

    Attributes:
        key: Path of the key that names the dataset, from the section that uses it.
        name: Name or path of the dataset.
        use: What its rows are used for.
        refused: What a row must not hold, each with the reason.
        taken: Number of rows that are taken, each once, and so have to be there.
        taken_by: The setting that takes them, such as `num_prompts = 9`.

    Example:
        DatasetUse(("data", "mixture", "chat"), "chat", "dialogues")
    """

    key: Key
    name: str
    use: Use
    refused: Mapping[Content, str] = field(default_factory=dict)
    taken: int = 0
    taken_by: str = ""


@dataclass(frozen=True)
class TaskUse:
    """A task as a stage or the evaluation plays it.

    Attributes:
        key: Path of its section from the section that lists it.
        task: The task.
        refused: What a prompt must not hold, each with the reason.
    """

    key: Key
    task: TaskConfig
    refused: Mapping[Content, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CurationUse:
    """A curation recipe that a stage's data go through first.

    Attributes:
        key: Path of the key that names the recipe, from the stage.
        recipe: Name or path of the recipe.
        datasets: Datasets of the stage, one of which the recipe has to curate.
        tasks: Tasks of the stage, that of the recipe's dataset to be played by the model at hand.
    """

    key: Key
    recipe: str
    datasets: Sequence[str]
    tasks: Sequence[TaskConfig] = ()


@dataclass(frozen=True)
class CheckpointUse:
    """A model that a stage needs besides the one that it trains.

    Attributes:
        key: Path of the key that names it, from the stage.
        role: What it is for, such as `teacher`.
        name: Hugging Face id or local directory.
        length_key: Path of the key that says how many tokens it takes, from the stage.
        max_length: Most tokens of what it is shown and writes.
        same_tokens: Whether its tokens must be those of the run's model.
    """

    key: Key
    role: str
    name: str
    length_key: Key
    max_length: int
    same_tokens: bool = False


@dataclass(frozen=True)
class ReadingEngines:
    """Engines beside those that play, whose model reads what was played.

    Attributes:
        key: Path of the section of their settings, from the stage.
        rollout: How many there are, and how long what they read may be.
        checkpoint: Hugging Face id or local directory of their model; None where it is one of the run's own.
        together: Episodes that are read at once.
    """

    key: Key
    rollout: RolloutConfig
    checkpoint: str | None
    together: int

    @property
    def gpus(self) -> int:
        """Number of GPUs that they take."""
        return self.rollout.actors * self.rollout.engine.tensor_parallel_size


@dataclass(frozen=True)
class EndpointUse:
    """A model behind an address that a stage asks.

    Attributes:
        key: Path of the key that describes it, from the stage.
        endpoint: The model and its address.
    """

    key: Key
    endpoint: EndpointConfig


@dataclass(frozen=True)
class Surroundings:
    """What stands around a stage in its run, for checks that go across sections.

    Attributes:
        earlier: Names of the stages before it.
        has_base: Whether the run names a model to start from.
        dtype: The type that the run's model computes in.
        cpus: Cores that the run's cluster offers; None where it offers all of a machine, or is joined.
        gpus: GPUs that the run uses, 0 on a CPU; None where that is not known yet.
        shared: Whether learners and engines share their GPUs.
        measured_before: Evaluation tasks that are measured on the checkpoint the stage starts from.
        measured_after: Evaluation tasks that are measured on the stage's own checkpoint.
    """

    earlier: tuple[str, ...]
    has_base: bool
    dtype: str
    cpus: int | None
    gpus: int | None
    shared: bool
    measured_before: frozenset[str]
    measured_after: frozenset[str]


def too_few_gpus(takers: str, gpus: int, each: int = 1) -> tuple[str, str]:
    """Return reason and remedy where processes take more GPUs than there are.

    Args:
        takers: The processes.
        gpus: How many GPUs there are.
        each: How many a process takes.
    """
    return (
        f"{takers} take {'one GPU' if each == 1 else f'{each} GPUs'} each, and cluster.num_gpus is {gpus}",
        "lower it, raise cluster.num_gpus, or set that to 0 to run on the CPU",
    )


class StageConfig(Section):
    """What every kind of stage has, whether or not it starts from a checkpoint."""

    #: Reference of the class that runs the stage (see `posttrain.training.pipeline.StageRunner`).
    runner: ClassVar[str]
    #: Whether the stage makes a new model, so that it can only be a run's first.
    makes_model: ClassVar[bool] = False

    name: Name = Field(description="Name of the stage's folder and of its metrics.")

    @property
    def kind(self) -> str:
        """Kind of the stage, as the key `stage` of each class says it."""
        return vars(self)["stage"]

    @property
    def shared_name(self) -> str:
        """Name that random numbers depend on, and that tables call it by."""
        return self.name

    @property
    def learners(self) -> int:
        """Number of processes that train the model."""
        return 0

    @property
    def cores(self) -> int:
        """Number of cores that the stage's workers wait for."""
        return 0

    @property
    def engines(self) -> int:
        """Number of inference engines that run beside the learners."""
        return 0

    def adapter_rank(self, use_gpu: bool) -> int:
        """Rank of the adapters that engines are sent beside the base weights; 0 if they get whole weights."""
        return 0

    @property
    def busy_beside_engines(self) -> int:
        """Number of learner processes that compute at the same time as the engines."""
        return 0

    @property
    def episodes_in_flight(self) -> tuple[int, int]:
        """Episodes of a step, and steps whose episodes exist at the same time; (0, 0) without such steps."""
        return 0, 0

    @property
    def episodes(self) -> RolloutConfig | None:
        """How the stage generates episodes; None if it generates none."""
        return None

    @property
    def reading_engines(self) -> ReadingEngines | None:
        """Engines of another model that read what is played, on GPUs of their own; None without them."""
        return None

    @property
    def playing_gpus(self) -> int:
        """Number of GPUs of the engines that generate episodes, if there are GPUs."""
        return 0 if self.episodes is None else self.engines * self.episodes.engine.tensor_parallel_size

    def gpus(self, shared: bool) -> int:
        """Return how many GPUs learners and engines take together.

        Args:
            shared: Whether learners and the engines that play share them.
        """
        engines, reading = self.playing_gpus, self.reading_engines
        both = max(self.learners, engines) if shared else self.learners + engines
        return both + (0 if reading is None else reading.gpus)

    def origin(self, before: str) -> str | None:
        """Return whose checkpoint the stage starts from: a stage's name, `base`, or None for a new model.

        Args:
            before: Name of the stage before, or `base`.
        """
        return None

    def on(self, use_gpu: bool) -> Self:
        """Return the stage with everything set that depends on whether it runs on GPUs."""
        return self

    def datasets(self) -> list[DatasetUse]:
        """List the datasets whose rows the stage reads, except those of its tasks."""
        return []

    def tasks_played(self) -> list[TaskUse]:
        """List the tasks on which the stage plays episodes."""
        return []

    def curations(self) -> list[CurationUse]:
        """List the curation recipes that the stage's data go through first."""
        return []

    def checkpoints(self) -> list[CheckpointUse]:
        """List the models that the stage needs besides the one that it trains."""
        return []

    def endpoints(self) -> list[EndpointUse]:
        """List the models behind addresses that the stage asks."""
        return []

    def packages(self) -> list[PackageUse]:
        """List the optional packages that the stage's settings need."""
        return []

    def arithmetic(self) -> list[tuple[str, str]]:
        """Return rows of (quantity, sum) that say what the batch settings come to."""
        return []

    def load(self) -> LearnerLoad | None:
        """Return what a learner's process holds and computes; None without one, or with one of any size."""
        return None

    def check_in_run(self, around: Surroundings) -> None:
        """Check what only the whole run can tell.

        Raises:
            MisfitError: With a key relative to the stage.
        """


class TrainingStage(StageConfig):
    """A stage whose workers take optimiser steps."""

    num_workers: Positive = Field(default=1, description="Data-parallel processes that train the model.")
    max_skipped_updates: Positive = Field(
        default=5,
        description="Updates in a row whose loss or gradient is not finite before the stage ends; the others "
        "are skipped and counted.",
    )
    save_steps: Positive = Field(default=500, description="Steps between checkpoints.")
    logging_steps: Positive = Field(default=10, description="Steps between rows of metrics.")

    @property
    def learners(self) -> int:
        """Number of processes that train the model."""
        return self.num_workers

    @property
    def cores(self) -> int:
        """Number of cores that the workers wait for: Ray Train starts none before there is one each."""
        return self.num_workers

    def check_in_run(self, around: Surroundings) -> None:
        """Check that there are cores and GPUs for every worker, and GPUs for every engine beside them."""
        if around.cpus and self.cores > around.cpus:
            raise MisfitError(
                "num_workers",
                f"{self.cores} workers take one core each, and cluster.num_cpus is {around.cpus}",
                "lower it, or raise cluster.num_cpus",
            )
        taken, taken_by_engines = self.gpus(around.shared), self.playing_gpus
        if around.gpus and taken > around.gpus:
            raise MisfitError("num_workers", *self._too_few_gpus(taken, around.gpus))
        if around.shared and around.gpus != 0 and self.engines and self.learners != taken_by_engines:
            raise MisfitError(
                "num_workers",
                "with cluster.placement: shared an engine takes its weights from the learner on its GPU, and "
                f"{self.num_workers} learners are not as many as the {taken_by_engines} GPUs of the engines",
                f"set it to {taken_by_engines}, or change rollout.actors: engines sleep while learners work",
            )

    def _too_few_gpus(self, taken: int, gpus: int) -> tuple[str, str]:
        engines = f" + {self.engines} rollout.actors" if self.engines else ""
        each = 1 if self.episodes is None else self.episodes.engine.tensor_parallel_size
        reading = self.reading_engines
        beside = "" if reading is None else f" + {reading.rollout.actors} {reading.key[0]}.actors"
        spans = 1 if reading is None else reading.rollout.engine.tensor_parallel_size
        if each == spans == 1:
            return too_few_gpus(f"{self.num_workers} num_workers{engines}{beside}", gpus)
        _, remedy = too_few_gpus("", gpus)
        takers = f"{self.num_workers} num_workers{engines}"
        takers += f" × {each} engine.tensor_parallel_size" * (each > 1) + beside
        takers += f" × {spans} {reading.key[0]}.engine.tensor_parallel_size" * (spans > 1) if reading else ""
        return f"{takers} take {taken} GPUs, and cluster.num_gpus is {gpus}", remedy
