"""What the workers of a stage get: everything about the stage and its run, as plain data that pickles."""

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
        stage: The stage's.
        run: The run's directory.
        start: Checkpoint that the stage starts from; None where it makes a new model.
        resume: The stage's own newest checkpoint, to go on from; None at the beginning.
        until: Step after which to stop for now, with a checkpoint; None for the stage's end.
        replaced: Datasets that take the place of those that names of the mixture stand for: curated rows, or
            prompts with a teacher's answers.
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
        """The checkpoint that the stage starts from, of a stage that has one."""
        assert self.start is not None, f"stage {self.stage.name} makes its own model"
        return self.start
