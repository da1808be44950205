"""Curation as the first half of a stage: what passes the recipe's filters is what the stage learns from."""

from pathlib import Path

from posttrain.config import DatasetConfig, SftStage, SourceConfig, load_dataset_config
from posttrain.config.curation import load_curation
from posttrain.curation.engines import EngineModels
from posttrain.curation.pipeline import curate
from posttrain.training.run_at_work import RunAtWork
from posttrain.viewer.curation_page import write_curation_page

#: Folder of a stage's curation within the stage's own.
CURATION = "curation"


def curated_dataset(stage: SftStage, work: RunAtWork) -> tuple[DatasetConfig, str] | None:
    """Curate a stage's data, or go on with a curation that was interrupted.

    Its rows, kept and dropped, its funnel and its page are in `<run>/<stage>/curation`.

    Args:
        stage: Its `curation` names the recipe.
        work: The run.

    Returns:
        The kept rows, under the name of the dataset that they are of, and the funnel's table; None where the
        stage curates nothing.

    Raises:
        CurationError, DataError, ConfigError, DiskFull: As `curate` says.
    """
    if stage.curation is None:
        return None
    places = {"name": CURATION, "output_dir": str(work.run.stage_dir(stage.name))}
    recipe = load_curation(stage.curation, Path(work.config.base_dir)).model_copy(update=places)
    with EngineModels(recipe.cluster) as models:
        report = curate(recipe, work.plugins, resume=True, open_checkpoint=models.open)
    write_curation_page(report.directory)
    whole = load_dataset_config(recipe.data, work.config.base_dir)
    kept = DatasetConfig(
        name=whole.name,
        description=whole.description,
        licence=whole.licence,
        source=SourceConfig(path=str(report.directory / "kept.jsonl")),
    )
    return kept, report.table()
