"""Whether the nodes of a run's cluster see what its processes read there themselves."""

import uuid
from collections.abc import Sequence
from pathlib import Path

from posttrain.config import RunConfig, TrainingStage
from posttrain.config.mcp import McpServerConfig
from posttrain.data.dataset import Dataset
from posttrain.data.sources import load_samples
from posttrain.files.cache import default_cache
from posttrain.run.directory import RunDir
from posttrain.run.shared_files import check_shared

#: Rows of a dataset whose images and videos are looked for.
ROWS = 3


def check_shared_data(config: RunConfig) -> None:
    """Check that the nodes see what the prompts show that engines play, and the files of tools.

    Models, checkpoints and the images of tools need not be shared: they are sent (see `posttrain.run.home`).

    Raises:
        NotShared: Naming folder and node.
    """
    needed: dict[str, Sequence[Path]] = {}
    for use in config.tasks():
        rows = load_samples(use.task.data, config.base_dir, use="episodes", look_again=False)
        needed[f"the images and videos of dataset {use.task.data}"] = _shown(rows)
        named = [*use.task.tools, *([use.task.environment] if use.task.environment is not None else ())]
        files = [plugin.name.partition(":")[0] for plugin in named if ".py:" in plugin.name]
        tools = [Path(config.base_dir, file).absolute() for file in files]
        for server in use.task.tools:
            tools += server.files(config.base_dir) if isinstance(server, McpServerConfig) else []
        needed[f"the tools of task {use.task.name}"] = tools
    check_shared(needed)


def check_shared_folders(run: RunDir, stage: TrainingStage) -> None:
    """Check that the nodes see the run's directory and the data's cache, as a supervised stage's workers do.

    Each worker opens the data, and writes its part of every checkpoint.

    Raises:
        NotShared: Naming folder and node.
    """
    markers = [
        folder / f".shared-{uuid.uuid4().hex}" for folder in (run.stage_dir(stage.name), default_cache())
    ]
    try:
        for marker in markers:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text("seen", encoding="utf-8")
        outputs, cache = markers
        check_shared({f"the checkpoints of stage {stage.name}": [outputs], "the prepared data": [cache]})
    finally:
        for marker in markers:
            marker.unlink(missing_ok=True)


def _shown(rows: Dataset) -> list[Path]:
    """Return images and videos of the first, the last and a middle row."""
    chosen = sorted({0, len(rows) // 2, len(rows) - 1}) if len(rows) else []
    samples = [rows[index] for index in chosen[:ROWS]]
    turns = [message for each in samples for message in each.messages]
    paths = [image.path for message in turns for image in message.images]
    paths += [path for message in turns for video in message.videos for path in video.paths]
    return [Path(path) for path in dict.fromkeys(paths)]
