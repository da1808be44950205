"""Curation as the first half of a stage, which then learns from the rows that pass the recipe's filters.

In an rl stage a `pass_rate` step without an endpoint is about the model at hand: the checkpoint that the
stage starts from plays the stage's own task, in the engines that the stage then plays in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from posttrain.config import DatasetConfig, OnPolicyStage, SftStage, SourceConfig, load_dataset_config
from posttrain.config.curation import NO_REWARDS, CurationConfig, load_curation
from posttrain.config.endpoints import CheckpointConfig, EarlierModelConfig, shared_with
from posttrain.config.sampling_steps import PlayingStep
from posttrain.config.tasks import EpisodeTask, TaskConfig
from posttrain.curation.engines import EngineModel, EngineModels
from posttrain.curation.episodes import PooledEpisodes
from posttrain.curation.outcomes import CurationError
from posttrain.curation.pipeline import curate
from posttrain.joints import Plugins
from posttrain.rollout.play import RolloutPool
from posttrain.run.judging import write_budget
from posttrain.training.run_at_work import RunAtWork
from posttrain.viewer.curation_page import write_curation_page

#: Folder of a stage's curation within the stage's own.
CURATION = "curation"
#: What a recipe calls the checkpoint that its rl stage starts from.
AT_HAND = "model at hand"


def curated_datasets(
    stage: SftStage | OnPolicyStage, work: RunAtWork, playing: OnPolicyStage | None = None
) -> Mapping[str, DatasetConfig]:
    """Curate a stage's data, or continue a curation that was interrupted; print how many rows each step kept.

    Its rows, kept and dropped, its funnel and its page are in `<run>/<stage>/curation`.

    Args:
        stage: The stage's settings; `curation` names the recipe.
        work: The run.
        playing: The same stage, if its checkpoint can play its tasks.

    Returns:
        The dataset of the kept rows, by the name of the one that was curated; nothing if the stage has no
        curation.

    Raises:
        CurationError, DataError, ConfigError, DiskFull: As in `curate`, or if no row was kept.
    """
    if stage.curation is None:
        return {}
    places = {"name": CURATION, "output_dir": str(work.run.stage_dir(stage.name))}
    recipe = load_curation(stage.curation, Path(work.config.base_dir)).model_copy(update=places)
    recipe = with_stages(recipe, work)
    if playing is not None:
        recipe = about_model_at_hand(recipe, playing, work)
    with EngineModels(recipe, work.plugins, use_gpu=work.use_gpu) as models:
        engines = _Engines(playing, work, models, recipe)
        report = curate(
            recipe,
            _counting_judges(work),
            resume=True,
            open_checkpoint=engines.open,
            open_episodes=engines.open_episodes,
        )
    page = write_curation_page(report.directory)
    print(report.table(), flush=True)
    if not report.kept:
        raise CurationError(
            f"stage {stage.name}: no row of {recipe.data!r} passed {stage.curation!r}; {page} shows why. "
            "Widen its filters, or remove `curation`"
        )
    whole = load_dataset_config(recipe.data, work.config.base_dir)
    kept = DatasetConfig(
        name=whole.name,
        description=whole.description,
        licence=whole.licence,
        source=SourceConfig(path=str(report.directory / "kept.jsonl")),
    )
    return {recipe.data: kept}


def _counting_judges(work: RunAtWork) -> Plugins:
    """Return a run's plugins, with rewards that are scored within the run's budget of judges."""
    budget = write_budget(work.run.path, work.config.judge_budget)
    return replace(work.plugins, make_scorer=partial(work.plugins.make_scorer, judge_budget=budget))


def about_model_at_hand(recipe: CurationConfig, stage: OnPolicyStage, work: RunAtWork) -> CurationConfig:
    """Return a recipe whose steps without an endpoint are about a stage's own checkpoint and task.

    Raises:
        CurationError: If it is not clear which task of the stage they are about.
    """
    steps = [step for step in recipe.steps if isinstance(step, PlayingStep) and step.endpoint is None]
    if not steps:
        return recipe
    origin, model, rollout = work.start_of(stage), work.config.model, stage.rollout
    assert origin is not None
    task = task_played(recipe, stage)
    turn, episode = task.lengths_in(rollout)
    entry = CheckpointConfig(
        checkpoint=str(origin),
        **shared_with(model),
        actors=rollout.actors,
        max_length=episode,
        engine=rollout.engine,
    )
    how = EpisodeTask(**{name: getattr(task, name) for name in EpisodeTask.model_fields})
    found = []
    for step in recipe.steps:
        if step not in steps:
            found.append(step)
            continue
        changes: dict[str, object] = {"endpoint": AT_HAND, "task": how}
        if "max_new_tokens" not in step.model_fields_set:
            changes["max_new_tokens"] = turn
        if "temperature" not in step.model_fields_set:
            changes["temperature"] = rollout.temperature
        found.append(step.model_copy(update=changes))
    return recipe.model_copy(update={"steps": found, "endpoints": {**recipe.endpoints, AT_HAND: entry}})


def with_stages(recipe: CurationConfig, work: RunAtWork) -> CurationConfig:
    """Return a recipe that names stages of a run with the checkpoints that these ended in.

    Raises:
        CurationError: If there is no such stage before this one.
    """
    endpoints = {**recipe.endpoints}
    for name, entry in recipe.endpoints.items():
        if not isinstance(entry, EarlierModelConfig):
            continue
        if entry.stage not in work.checkpoints:
            raise CurationError(f"endpoints.{name}.stage: no earlier stage is called {entry.stage!r}")
        endpoints[name] = entry.at(str(work.checkpoints[entry.stage]), work.config.model)
    return recipe.model_copy(update={"endpoints": endpoints})


def task_played(recipe: CurationConfig, stage: OnPolicyStage) -> TaskConfig:
    """Return the task of a stage that the model at hand plays.

    Raises:
        CurationError: If none or several of the stage's tasks are of the recipe's dataset, or it has no
            rewards.
    """
    tasks = [task for task in stage.tasks if task.data == recipe.data]
    if len(tasks) != 1:
        raise CurationError(
            f"stage {stage.name}: {len(tasks)} of its tasks are of {recipe.data!r}, which {stage.curation!r} "
            "curates; its pass_rate step plays the one that is"
        )
    if not tasks[0].rewards:
        raise CurationError(
            f"stage {stage.name}: a step of {stage.curation!r} is to play its task "
            f"{tasks[0].name!r}, which {NO_REWARDS}"
        )
    return tasks[0]


@dataclass(frozen=True)
class _Engines:
    """What opens the checkpoints of a stage's recipe: the run's engines for the model at hand, else others.

    One of the two kinds is at work at a time, since either may take all memory.

    Attributes:
        stage: The stage whose checkpoint is at hand, if there is one.
        work: The run.
        models: The engines of other checkpoints.
        recipe: The recipe.
    """

    stage: OnPolicyStage | None
    work: RunAtWork
    models: EngineModels
    recipe: CurationConfig

    def open(self, name: str, entry: CheckpointConfig) -> EngineModel:
        """Return a checkpoint that answers (see `EngineModels`)."""
        self.work.services.close_pool()
        return self.models.open(name, entry)

    def open_episodes(self, step: PlayingStep, entry: CheckpointConfig) -> PooledEpisodes:
        """Return a checkpoint that plays (see `EngineModels`)."""
        if step.endpoint != AT_HAND or self.stage is None:
            self.work.services.close_pool()
            return self.models.open_episodes(step, entry)
        self.models.close_pool()
        name = task_played(self.recipe, self.stage).name
        pool = partial(self._pool, self.stage)
        return PooledEpisodes(step, pool, name, entry.max_length, self.recipe.seed)

    def _pool(self, stage: OnPolicyStage) -> RolloutPool:
        start = self.work.start_of(stage)
        assert start is not None
        return self.work.services.pool_with(start, stage.rollout)
