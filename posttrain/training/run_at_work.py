"""A run in progress: its settings, directory and engines, and the checkpoints of its stages so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from posttrain.config import EvalTask, RunConfig, StageConfig
from posttrain.evaluation.evaluate import evaluate_task, read_evaluations
from posttrain.joints import Plugins
from posttrain.models.lora import is_adapter, write_merged
from posttrain.rendering.row_checks import KnownRenderer, RenderCheck
from posttrain.run.directory import CHECKPOINT_NAME, RunDir, save_checkpoint, step_of
from posttrain.run.record import record_places
from posttrain.run.rows import EvaluationRow
from posttrain.training.engines_and_rewards import EnginesAndRewards


@dataclass
class RunAtWork:
    """What the runners of a run's stages share.

    Attributes:
        config: The run's settings, as they are on the cluster (see `RunConfig.on`).
        run: The run's directory.
        services: Engine pool and reward server.
        plugins: Rewards and tools.
        checkpoints: The whole models that later stages start from, by stage; `base` is the given model.
        card: Bytes of a GPU; None where that is not known, or none is used.
    """

    config: RunConfig
    run: RunDir
    services: EnginesAndRewards
    plugins: Plugins
    checkpoints: dict[str, Path] = field(default_factory=dict)
    card: float | None = None

    @property
    def use_gpu(self) -> bool:
        """Whether workers and engines take GPUs."""
        return self.config.use_gpu

    @property
    def shares_gpus(self) -> bool:
        """Whether engines and learners are on the same GPUs, and take turns."""
        return self.use_gpu and self.config.cluster.placement == "shared"

    def start_of(self, stage: StageConfig) -> Path | None:
        """Return the checkpoint that a stage starts from; None if it makes a new model."""
        return self.checkpoints.get(self.config.origins.get(stage.name, ""))

    def record_places(self, stage: StageConfig, **places: Sequence[str]) -> None:
        """Record where the processes of a stage are, and print it where there is more than one node or GPU.

        Args:
            stage: The stage.
            **places: By what they do, where each of them is.
        """
        told = record_places(self.run.stage_dir(stage.name), places)
        if len({place for each in places.values() for place in each}) > 1:
            print(f"{stage.name}: {told}", flush=True)

    def evaluate(self, name: str, checkpoint: Path, called: str = "") -> None:
        """Measure a checkpoint on its evaluation tasks, unless that has been done.

        Args:
            name: Of the stage that made it, or `base`: whose tasks they are.
            checkpoint: A whole model.
            called: What the results call it; `name` if empty.
        """
        step, called = step_in_name(checkpoint), called or name
        done = {row.place for row in read_evaluations(self.run)}
        for task in self.config.tasks_after(name):
            if (called, task.name, step) in done:
                continue
            pool = self.services.pool_with(checkpoint, self.config.measuring_rollout(name))
            check = RenderCheck(KnownRenderer(checkpoint, self.config.model), "episodes")
            row = evaluate_task(pool, self.config, task, self.run, called, step, check)
            print(
                f"{called}  {task.name}: {_measure(task)} {row.accuracy:.3f}"
                f"  [{row.low:.3f}, {row.high:.3f}]  n {row.n}  {row.seconds} s",
                flush=True,
            )


def _measure(task: EvalTask) -> str:
    """Return what the accuracy of a task is called."""
    return "accuracy" if task.samples_per_prompt == 1 else f"mean@{task.samples_per_prompt}"


class StageRunner(Protocol):
    """Runs one stage of a run."""

    def run(self) -> Path:
        """Run the stage, from its newest checkpoint if it has one; return its final checkpoint."""
        ...

    def measurements(self) -> Sequence[EvaluationRow]:
        """Return what the finished stage has measured by itself, as rows of evaluation.jsonl."""
        ...


@runtime_checkable
class StageRunnerFactory(Protocol):
    """Makes the runner of a stage; `StageConfig.runner` is the name of one."""

    def __call__(self, work: RunAtWork, stage: StageConfig) -> StageRunner:
        """Make a runner of a stage, which is of the kind that names this factory."""
        ...


def standalone(checkpoint: Path, merged: Path) -> Path:
    """Return a checkpoint as a whole model: the checkpoint itself, or a merged copy if it has adapters.

    Args:
        checkpoint: A stage's checkpoint, or a model given by name.
        merged: Directory for the copy, which is written if it is not there.
    """
    if not is_adapter(checkpoint):
        return checkpoint
    return save_checkpoint(merged, lambda directory: write_merged(checkpoint, directory))


def step_in_name(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name; 0 for a model that no run made."""
    return step_of(checkpoint) if CHECKPOINT_NAME.fullmatch(checkpoint.name) else 0
