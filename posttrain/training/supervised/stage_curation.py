"""Curation as the first half of a stage, which then learns from the rows that pass the recipe's filters."""

from pathlib import Path

from posttrain.config import DatasetConfig, SftStage, SourceConfig, load_dataset_config
from posttrain.config.curation import load_curation
from posttrain.curation.engines import EngineModels
from posttrain.curation.pipeline import curate
from posttrain.training.run_at_work import RunAtWork
from posttrain.viewer.curation_page import write_curation_page

#: Folder of a stage's curation within the stage's own.
CURATION = "curation"


def curated_dataset(stage: SftStage, work: RunAtWork) -> tuple[str, DatasetConfig, str] | None:
    """Curate a stage's data, or continue a curation that was interrupted.

    Its rows, kept and dropped, its funnel and its page are in `<run>/<stage>/curation`.

    Args:
        stage: The stage's settings; `curation` names the recipe.
        work: The run.

    Returns:
        A dataset of the kept rows, which has the name of the one that was curated, and the table of how many
        rows each step kept; None if the stage has no curation.

    Raises:
        CurationError, DataError, ConfigError, DiskFull: As in `curate`.
    """
    if stage.curation is None:
        return None
    places = {"name": CURATION, "output_dir": str(work.run.stage_dir(stage.name))}
    recipe = load_curation(stage.curation, Path(work.config.base_dir)).model_copy(update=places)
    with EngineModels(recipe.cluster, use_gpu=work.use_gpu) as models:
        report = curate(recipe, work.plugins, resume=True, open_checkpoint=models.open)
    write_curation_page(report.directory)
    whole = load_dataset_config(recipe.data, work.config.base_dir)
    kept = DatasetConfig(
        name=whole.name,
        description=whole.description,
        licence=whole.licence,
        source=SourceConfig(path=str(report.directory / "kept.jsonl")),
    )
    return recipe.data, kept, report.table()
