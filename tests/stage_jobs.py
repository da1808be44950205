"""A stage's work for tests that run workers in a process of their own."""

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import RunConfig, StageConfig
from posttrain.quickstart import marker_scenes
from posttrain.run.directory import RunDir
from posttrain.training.stage_job import StageJob


def job_of(config: RunConfig, run: RunDir, start: Path, place: int = 0, **more: Any) -> StageJob[Any]:
    """Make the work of one of a run's stages, from its own newest checkpoint if there is one."""
    stage: Any = config.stages[place]
    settings: dict[str, Any] = {"resume": run.newest_checkpoint(stage.name)} | more
    return StageJob(config=config, stage=stage, run=run, start=start, **settings)


def write_scenes(folder: Path, count: int) -> None:
    """Write drawn scenes to learn from as `scenes.yaml` in a folder."""
    (folder / "scenes").mkdir()
    marker_scenes.write(folder / "scenes", kind="list", split="sft", count=count)
    source = {"path": "scenes/data.jsonl"}
    dataset = {"name": "scenes", "description": "Scenes.", "licence": "CC0-1.0", "source": source}
    (folder / "scenes.yaml").write_text(yaml.safe_dump(dataset))


def worker_of(stage: StageConfig) -> Callable[[StageJob[Any]], None]:
    """Return the function that the workers of a stage call."""
    return pkgutil.resolve_name(worker_name(stage))


def worker_name(stage: StageConfig) -> str:
    """Return the reference of that function."""
    return pkgutil.resolve_name(stage.runner).worker
