"""A run: its stages one after another, an evaluation after each, and the report at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.config import (
    DatasetConfig,
    DistillationStage,
    DpoStage,
    RlStage,
    RunConfig,
    SftStage,
    Stage,
    TinyModelStage,
)
from posttrain.data.sources import load_samples
from posttrain.evaluation.evaluate import (
    evaluate_task,
    final_evaluations,
    read_evaluations,
    record_evaluation,
)
from posttrain.evaluation.pairs import pair_evaluations
from posttrain.evaluation.table import evaluation_table
from posttrain.models.lora import is_adapter, write_merged
from posttrain.run.cluster import cluster
from posttrain.run.directory import CHECKPOINT_NAME, RunDir, save_checkpoint, step_of
from posttrain.run.process import ending_on_sigterm, saving_on_sigterm, working_on
from posttrain.run.tracking import showing_progress
from posttrain.training.data_check import check_run_data, use_of
from posttrain.training.engines_and_rewards import Services
from posttrain.training.on_policy.controller import run_rl
from posttrain.training.supervised.ray_workers import run_workers
from posttrain.training.supervised.stage_curation import curated_dataset
from posttrain.training.supervised.teacher_answers import taught_datasets
from posttrain.viewer import write_report

#: What the workers of a stage run, by its kind.
WORKERS = {
    "tiny_model": "posttrain.quickstart.pretrain:pretrain_worker",
    "sft": "posttrain.training.supervised.sft:sft_worker",
    "distillation": "posttrain.training.supervised.distillation:distillation_worker",
    "dpo": "posttrain.training.supervised.dpo:dpo_worker",
}


def run(config: RunConfig, *, resume: bool = False, allow_changes: bool = False) -> Path:
    """Run every stage that is not finished, evaluate, and write the report.

    Args:
        config: The resolved settings.
        resume: Go on with a run of this name.
        allow_changes: Go on although settings or data changed since the run began.

    Returns:
        The run's directory.

    Raises:
        RunInUse: If another process works on the run.
        RunStopped: If SIGTERM came; what was reached is saved.
    """
    with working_on(RunDir.of(config).path), ending_on_sigterm():
        return _run(config, RunDir.create(config, resume=resume, allow_changes=allow_changes))


def _run(config: RunConfig, directory: RunDir) -> Path:
    check_run_data(config, directory)
    settings = config.cluster
    with (
        cluster(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            object_store_mb=settings.object_store_mb,
            address=settings.address,
        ),
        Services(config, directory) as services,
    ):
        checkpoints: dict[str, Path] = {}
        if config.model.name_or_path is not None:
            given = Path(config.model.name_or_path)
            checkpoints["base"] = standalone(given, directory.path / "base" / "checkpoint-0")
            evaluate(config, "base", directory, checkpoints["base"], services)
        for stage in config.stages:
            final = run_stage(config, stage, directory, checkpoints, services)
            evaluate(config, stage.name, directory, final, services)
            if isinstance(stage, DpoStage):
                _record_pairs(config, stage, directory, checkpoints)
            checkpoints[stage.name] = final
    report = write_report(directory.path)
    if measured := read_evaluations(directory):
        print(evaluation_table(final_evaluations(measured)))
    print(f"report: {report}")
    return directory.path


def run_stage(
    config: RunConfig,
    stage: Stage,
    directory: RunDir,
    checkpoints: Mapping[str, Path],
    services: Services,
) -> Path:
    """One stage, from a checkpoint to what the next one starts from; a finished stage is passed over.

    Args:
        config: The run's settings.
        stage: The stage's.
        directory: The run's directory.
        checkpoints: By name, what the stages before have come to, and `base`.
        services: Engine pool and reward server.

    A stage with LoRA keeps its adapters, and beside them a copy of the model with the adapters merged: every
    engine, evaluation and stage after it finds an ordinary model, and the adapters of the next stage have a
    base that PEFT, transformers and vLLM can load.
    """
    final = directory.final_checkpoint(stage.name)
    if final is None:
        final = _run_stage(config, stage, directory, checkpoints, services)
    return standalone(final, final.parent / "merged" / final.name)


def standalone(checkpoint: Path, merged: Path) -> Path:
    """The checkpoint itself; where it holds adapters, `merged`, which is then written if it is not there."""
    if not is_adapter(checkpoint):
        return checkpoint
    return save_checkpoint(merged, lambda directory: write_merged(checkpoint, directory))


def _run_stage(
    config: RunConfig,
    stage: Stage,
    directory: RunDir,
    checkpoints: Mapping[str, Path],
    services: Services,
) -> Path:
    checkpoint = checkpoints.get(config.origins.get(stage.name, ""))
    print(f"── {stage.name}: {stage.stage} {'from ' + str(checkpoint) if checkpoint else ''}", flush=True)
    if isinstance(stage, RlStage):
        assert checkpoint is not None
        final = run_rl(config, stage, directory, checkpoint, services)
    else:
        taught: dict[str, DatasetConfig] = {}
        if isinstance(stage, DistillationStage):
            taught = _have_taught(config, stage, directory, checkpoints, services)
        final = _run_worker_stage(config, stage, directory, checkpoint, services, taught)
    directory.finish_stage(stage.name, final)
    return final


def _have_taught(
    config: RunConfig,
    stage: DistillationStage,
    directory: RunDir,
    checkpoints: Mapping[str, Path],
    services: Services,
) -> dict[str, DatasetConfig]:
    """The stage's datasets with the answers of its teacher."""
    teacher: Path | None = None
    if stage.teacher.stage is not None:
        teacher = checkpoints[stage.teacher.stage]
    elif stage.teacher.checkpoint is not None:
        given = Path(stage.teacher.checkpoint)
        teacher = standalone(given, directory.path / stage.name / "teacher" / "checkpoint-0")
    student = checkpoints[config.origins[stage.name]]
    datasets, summary = taught_datasets(config, stage, directory, student, teacher, services)
    print(f"{stage.name}: {summary}", flush=True)
    return datasets


def _run_worker_stage(
    config: RunConfig,
    stage: TinyModelStage | SftStage | DistillationStage | DpoStage,
    directory: RunDir,
    checkpoint: Path | None,
    services: Services,
    taught: Mapping[str, DatasetConfig],
) -> Path:
    """A stage whose whole work happens in Ray Train workers."""
    arguments: dict[str, Any] = {
        "config": config,
        "stage": stage,
        "run": directory,
        "checkpoint": checkpoint,
    }
    stops: list[int] = []
    if isinstance(stage, SftStage | DistillationStage | DpoStage):
        if config.cluster.num_gpus > 0:
            services.close_pool()  # a curation's engines need the room, and then the workers
        rows, arguments["replaced"] = _open_data(config, stage, directory, taught)
        steps = stage.steps_for(rows)
        stops = stage.evaluation_steps(rows) if isinstance(stage, SftStage) else []
    else:
        steps = stage.steps
    with showing_progress(directory, stage.name, steps):
        for until in [*stops, steps]:
            newest = directory.newest_checkpoint(stage.name)
            if newest is None or step_of(newest) < until:
                _run_workers_until(arguments | {"resume": newest, "until": until}, services)
                newest = directory.newest_checkpoint(stage.name)
            if newest is not None and step_of(newest) == until < steps:
                whole = standalone(newest, directory.scratch(stage.name) / "merged" / newest.name)
                evaluate(config, stage.name, directory, whole, services)
    final = directory.newest_checkpoint(stage.name)
    assert final is not None
    return final


def _run_workers_until(arguments: Mapping[str, Any], services: Services) -> None:
    """Run a stage's workers up to a step; engines make room for them where GPUs are needed."""
    config: RunConfig = arguments["config"]
    stage: TinyModelStage | SftStage | DistillationStage | DpoStage = arguments["stage"]
    use_gpu = config.cluster.num_gpus > 0
    if use_gpu:
        services.close_pool()
    with saving_on_sigterm(arguments["run"]):
        run_workers(
            WORKERS[stage.stage],
            dict(arguments),
            num_workers=stage.num_workers,
            use_gpu=use_gpu,
            scratch=arguments["run"].scratch(stage.name),
        )


def _open_data(
    config: RunConfig,
    stage: SftStage | DistillationStage | DpoStage,
    directory: RunDir,
    taught: Mapping[str, DatasetConfig],
) -> tuple[int, dict[str, DatasetConfig]]:
    """Open and where wanted curate a stage's data, which `check_run_data` has checked.

    Returns:
        The rows of one epoch, and the datasets that take the place of those that their names stand for.
    """
    found = curated_dataset(stage, config.base_dir, directory) if isinstance(stage, SftStage) else None
    replaced = dict(taught)
    if found is not None:
        curated, funnel = found
        replaced[curated.name] = curated
        print(funnel, flush=True)
    datasets = [
        load_samples(replaced.get(name, name), config.base_dir, use=use_of(stage))
        for name in stage.data.mixture
    ]
    return sum(map(len, datasets)), replaced


def evaluate(config: RunConfig, name: str, directory: RunDir, checkpoint: Path, services: Services) -> None:
    """Measure a stage's checkpoint (or `base`) on its evaluation tasks, unless it has been done."""
    step = _step_of(checkpoint)
    done = {row.place for row in read_evaluations(directory)}
    for task in config.tasks_after(name):
        if (name, task.name, step) in done:
            continue
        pool = services.pool_with(checkpoint, config.evaluation_rollout)
        row = evaluate_task(pool, config, task, directory, name, step)
        print(
            f"{name}  {task.name}: accuracy {row.accuracy:.3f}"
            f"  [{row.low:.3f}, {row.high:.3f}]  n {row.n}  {row.seconds} s",
            flush=True,
        )


def _record_pairs(
    config: RunConfig, stage: DpoStage, directory: RunDir, checkpoints: Mapping[str, Path]
) -> None:
    """Put what a stage measured on its held-out pairs beside the other evaluations."""
    if stage.eval_dataset is None:
        return
    pairs = len(load_samples(stage.eval_dataset, config.base_dir, use="pairs"))
    start = config.origins[stage.name]
    origin = (start, _step_of(checkpoints[start]))
    for row in pair_evaluations(directory, stage.name, stage.eval_dataset, pairs, origin):
        record_evaluation(directory, row)


def _step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; 0 of a model that a run did not make."""
    return step_of(checkpoint) if CHECKPOINT_NAME.fullmatch(checkpoint.name) else 0
