"""Compute the sizes of a run: samples and steps of each stage."""

import math
from collections.abc import Sequence

from posttrain.config.comparison import cell_label
from posttrain.config.learning import Cell, LearningStage
from posttrain.config.run import RunConfig
from posttrain.config.stage import StageConfig


def batch_arithmetic(config: RunConfig) -> list[tuple[str, str]]:
    """Compute what the batch settings of each stage amount to.

    The cells of a comparison stand together: what they share once, and what differs by their settings.

    Returns:
        Rows of (stage and quantity, calculation), for a table of two columns.

    Example:
        [("rl: episodes a step", "16 prompts × 8 = 128"), …]
    """
    rows: list[tuple[str, str]] = []
    for name, members in stages_together(config).items():
        cells = [cell for stage in members if (cell := cell_of(stage)) is not None]
        if cells:
            origins = dict.fromkeys(config.origins[stage.name] for stage in members)
            rows.append((f"{name}: cells", grid_text(cells, " or ".join(origins))))
        tables = [dict(stage.arithmetic()) for stage in members]
        for quantity in dict.fromkeys(quantity for table in tables for quantity in table):
            texts = dict.fromkeys(table[quantity] for table in tables if quantity in table)
            for text in texts:
                rows.append((f"{name}: {quantity}", text))
    return rows


def cell_of(stage: StageConfig) -> Cell | None:
    """Return which cell of a comparison a stage is; None if it is none."""
    return stage.cell if isinstance(stage, LearningStage) else None


def stages_together(config: RunConfig) -> dict[str, list[StageConfig]]:
    """Return a run's stages by name, the cells of a comparison together by its name."""
    found: dict[str, list[StageConfig]] = {}
    for stage in config.stages:
        found.setdefault(stage.shared_name, []).append(stage)
    return found


def grid_text(cells: Sequence[Cell], origin: str) -> str:
    """Tell how many cells a comparison has, and of what.

    Example:
        "seed 0, 1 × name sapo, grpo = 4 stages, each from sft"
    """
    values: dict[str, list[str]] = {}
    for cell in cells:
        for key, value in cell.settings.items():
            last = key.rpartition(".")[2]
            label = cell_label(key, value).removeprefix(last) or "true"
            if label not in values.setdefault(last, []):
                values[last].append(label)
    dimensions = [f"{name} {', '.join(labels)}" for name, labels in values.items()]
    assert math.prod(len(labels) for labels in values.values()) == len(cells)
    return f"{' × '.join(dimensions)} = {len(cells)} stages, each from {origin}"
