"""A run while it works: its settings, its directory, its engines, and what its stages have come to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from posttrain.config import RunConfig, StageConfig
from posttrain.evaluation.evaluate import evaluate_task, read_evaluations
from posttrain.joints import Plugins
from posttrain.models.lora import is_adapter, write_merged
from posttrain.run.directory import CHECKPOINT_NAME, RunDir, save_checkpoint, step_of
from posttrain.run.rows import EvaluationRow
from posttrain.training.engines_and_rewards import EnginesAndRewards


@dataclass
class RunAtWork:
    """What the runners of stages share.

    Attributes:
        config: The run's settings.
        run: The run's directory.
        services: Engine pool and reward server.
        plugins: Rewards and tools.
        checkpoints: By stage, and for `base`, what later stages start from: whole models.
    """

    config: RunConfig
    run: RunDir
    services: EnginesAndRewards
    plugins: Plugins
    checkpoints: dict[str, Path] = field(default_factory=dict)

    @property
    def use_gpu(self) -> bool:
        """Whether workers and engines take GPUs."""
        return self.config.cluster.num_gpus > 0

    def start_of(self, stage: StageConfig) -> Path | None:
        """Return the checkpoint that a stage starts from; None where it makes a new model."""
        return self.checkpoints.get(self.config.origins.get(stage.name, ""))

    def evaluate(self, name: str, checkpoint: Path) -> None:
        """Measure a stage's checkpoint (or `base`) on its evaluation tasks, unless it has been done."""
        step = step_in_name(checkpoint)
        done = {row.place for row in read_evaluations(self.run)}
        for task in self.config.tasks_after(name):
            if (name, task.name, step) in done:
                continue
            pool = self.services.pool_with(checkpoint, self.config.evaluation_rollout)
            row = evaluate_task(pool, self.config, task, self.run, name, step)
            print(
                f"{name}  {task.name}: accuracy {row.accuracy:.3f}"
                f"  [{row.low:.3f}, {row.high:.3f}]  n {row.n}  {row.seconds} s",
                flush=True,
            )


class StageRunner(Protocol):
    """Runs one stage of a run."""

    def run(self) -> Path:
        """Run the stage from its start, or from its newest checkpoint; return its final checkpoint."""
        ...

    def measurements(self) -> Sequence[EvaluationRow]:
        """Return rows of evaluation.jsonl that the finished stage has measured by itself."""
        ...


@runtime_checkable
class StageRunnerFactory(Protocol):
    """Makes the runner of a stage; what `StageConfig.runner` refers to."""

    def __call__(self, work: RunAtWork, stage: Any) -> StageRunner:
        """Make a runner for a stage of the kind that names it."""
        ...


def standalone(checkpoint: Path, merged: Path) -> Path:
    """Return a checkpoint as a whole model: itself, or where it holds adapters a merged copy.

    Args:
        checkpoint: What a stage has come to, or a model given by name.
        merged: Directory for the copy, which is written if it is not there.
    """
    if not is_adapter(checkpoint):
        return checkpoint
    return save_checkpoint(merged, lambda directory: write_merged(checkpoint, directory))


def step_in_name(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name; 0 of a model that a run did not make."""
    return step_of(checkpoint) if CHECKPOINT_NAME.fullmatch(checkpoint.name) else 0
