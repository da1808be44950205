"""A kind of stage of one's own, as an exercise: a config class, its place in the union, a runner, a panel.

In the project each of the four would be one file: config/average.py (new), config/run.py (the union),
training/average.py (new) and viewer/panels.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from safetensors.torch import load_file

from posttrain.config import RunConfig, StageConfig
from posttrain.config.base import MisfitError, Name
from posttrain.config.run import Stage
from posttrain.config.stage import Surroundings
from posttrain.first_party import PLUGINS
from posttrain.models.load import load_model, save_model
from posttrain.rendering.rendering import Renderer
from posttrain.run.directory import RunDir
from posttrain.run.tracking import Tracker
from posttrain.training.engines_and_rewards import EnginesAndRewards
from posttrain.training.pipeline import execute
from posttrain.training.run_at_work import RunAtWork
from posttrain.viewer import panels, write_report


class AverageStage(StageConfig):
    """The mean of an earlier checkpoint's weights and those that the stage starts from."""

    runner: ClassVar[str] = f"{__file__}:AverageRunner"

    stage: Literal["average"] = Field(description="Kind of the stage.")
    name: Name = Field(default="average", description="Name of the stage's folder.")
    other: Name = Field(description="Earlier stage, or base.")
    share: float = Field(default=0.5, ge=0, le=1, description="Share of the other checkpoint.")

    def origin(self, before: str) -> str:
        """Return the stage before."""
        return before

    def arithmetic(self) -> list[tuple[str, str]]:
        """Return what is averaged."""
        return [("weights", f"{1 - self.share:.0%} + {self.share:.0%} of {self.other}")]

    def check_in_run(self, around: Surroundings) -> None:
        """Check that the other checkpoint is there."""
        if self.other not in (*around.earlier, *["base"] * around.has_base):
            raise MisfitError(
                "other", f"there is no {self.other!r} before this stage", "name an earlier stage"
            )


class ExerciseRun(RunConfig):
    """A run that may have the new kind."""

    stages: list[Annotated[AverageStage | Stage, Field(discriminator="stage")]] = Field(  # pyright: ignore
        description="What is done, in order."
    )


class AverageRunner:
    """Averages two checkpoints."""

    def __init__(self, work: RunAtWork, stage: AverageStage) -> None:
        self.work, self.stage = work, stage

    def run(self) -> Path:
        """Write the average as the stage's checkpoint."""
        work, stage = self.work, self.stage
        start, other = work.start_of(stage), work.checkpoints[stage.other]
        assert start is not None
        model: Any = load_model(start, dtype="float32")
        theirs: Any = load_model(other, dtype="float32").state_dict()
        with torch.no_grad():
            distance = sum((w - theirs[name]).norm().item() for name, w in model.state_dict().items())
            for name, weight in model.state_dict().items():
                weight.lerp_(theirs[name], stage.share)
        processor = Renderer.from_config(start, work.config.model).processor
        tracker = Tracker(work.run, [])
        tracker.log(stage.name, 1, {"average/distance": distance})
        tracker.close()
        return work.run.save_checkpoint(
            stage.name, 1, lambda path: save_model(model, processor, path), keep=1
        )

    def measurements(self) -> Sequence[Any]:
        """Return nothing."""
        return []


PANEL = panels.Panel("Distance", "Between the two checkpoints.", lines=("average/distance",))


def config_of(checkpoint: Path, output: Path, **stage: Any) -> ExerciseRun:
    return ExerciseRun.model_validate(
        {
            "name": "exercise",
            "output_dir": str(output),
            "model": {"name_or_path": str(checkpoint), "dtype": "float32"},
            "stages": [{"stage": "average", **stage}],
            "trackers": [],
        }
    )


def test_a_new_kind_of_stage_runs_like_the_others(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(panels, "PANELS", (*panels.PANELS, PANEL))
    config = config_of(tiny_checkpoint, tmp_path, other="base")
    run = RunDir.create(config, resume=False)
    work = RunAtWork(config, run, EnginesAndRewards(config, run, PLUGINS), PLUGINS)
    execute(work)
    final = work.checkpoints["average"]
    assert final == run.final_checkpoint("average") == run.path / "average" / "checkpoint-1"
    before, after = (load_file(path / "model.safetensors") for path in (tiny_checkpoint, final))
    assert all(torch.equal(before[name], after[name]) for name in after)  # the mean of a model and itself
    [row] = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    assert row["average/distance"] == 0
    assert "Between the two checkpoints." in write_report(run.path).read_text()
    execute(work)  # what is finished is passed over
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 1


def test_its_own_checks_name_its_key(tiny_checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"stages\[0\].other: there is no 'sft' before this stage"):
        config_of(tiny_checkpoint, tmp_path, other="sft")
