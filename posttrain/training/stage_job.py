"""What the workers of a stage are given: everything about the stage and its run, as data that pickles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from posttrain.config import DatasetConfig, RunConfig, StageConfig
from posttrain.run.directory import RunDir

S = TypeVar("S", bound=StageConfig, covariant=True)


@dataclass(frozen=True, kw_only=True)
class StageJob(Generic[S]):
    """A stage's work, the same for every worker.

    Attributes:
        config: The run's settings.
        stage: The stage's settings.
        run: The run's directory.
        start: Checkpoint that the stage starts from; None if it makes a new model.
        resume: The stage's own newest checkpoint, to continue from; None at the beginning.
        until: Step after which to stop for now, with a checkpoint; None means the end of the stage.
        replaced: Datasets to use in place of some of the mixture's, by name: curated rows, or prompts with a
            teacher's answers.
    """

    config: RunConfig
    stage: S
    run: RunDir
    start: Path | None = None
    resume: Path | None = None
    until: int | None = None
    replaced: Mapping[str, DatasetConfig] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that the stage starts from; an error if it makes a new model."""
        assert self.start is not None, f"stage {self.stage.name} makes its own model"
        return self.start
