"""A run: its stages one after another, an evaluation after each, and the report at the end."""

from pathlib import Path

from posttrain.cluster import cluster
from posttrain.config import DpoStage, RlStage, RunConfig, SftStage, Stage, TinyModelStage
from posttrain.data.sources import load_samples
from posttrain.evaluation.evaluate import evaluate_task, read_evaluations
from posttrain.evaluation.table import evaluation_table
from posttrain.models.lora import is_adapter, write_merged
from posttrain.rollout.services import Services
from posttrain.run_dir import RunDir, save_checkpoint
from posttrain.tracking import showing_progress
from posttrain.training.dpo import dpo_worker
from posttrain.training.launch import run_workers
from posttrain.training.pretrain import pretrain_worker
from posttrain.training.rl import run_rl
from posttrain.training.sft import sft_worker
from posttrain.viewer import write_report

#: What the workers of a stage run, by its kind.
WORKERS = {"tiny_model": pretrain_worker, "sft": sft_worker, "dpo": dpo_worker}


def run(config: RunConfig, *, resume: bool = False, allow_changes: bool = False) -> Path:
    """Run every stage that is not finished, evaluate, and write the report.

    Args:
        config: The resolved settings.
        resume: Go on with a run of this name.
        allow_changes: Go on although settings or data changed since the run began.

    Returns:
        The run's directory.
    """
    directory = RunDir.create(config, resume=resume, allow_changes=allow_changes)
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
        checkpoint = Path(config.model.name_or_path) if config.model.name_or_path else None
        if checkpoint is not None:
            checkpoint = standalone(checkpoint, directory.path / "base" / "checkpoint-0")
            evaluate(config, "base", directory, checkpoint, services)
        for stage in config.stages:
            checkpoint = run_stage(config, stage, directory, checkpoint, services)
            evaluate(config, stage.name, directory, checkpoint, services)
    report = write_report(directory.path)
    if config.evaluation is not None:
        print(evaluation_table(read_evaluations(directory)))
    print(f"report: {report}")
    return directory.path


def run_stage(
    config: RunConfig, stage: Stage, directory: RunDir, checkpoint: Path | None, services: Services
) -> Path:
    """One stage, from a checkpoint to what the next one starts from; a finished stage is passed over.

    A stage with LoRA keeps its adapters, and beside them a copy of the model with the adapters merged: every
    engine, evaluation and stage after it finds an ordinary model, and the adapters of the next stage have a
    base that PEFT, transformers and vLLM can load.
    """
    final = directory.final_checkpoint(stage.name)
    if final is None:
        final = _run_stage(config, stage, directory, checkpoint, services)
    return standalone(final, final.parent / "merged" / final.name)


def standalone(checkpoint: Path, merged: Path) -> Path:
    """The checkpoint itself; where it holds adapters, `merged`, which is then written if it is not there."""
    if not is_adapter(checkpoint):
        return checkpoint
    return save_checkpoint(merged, lambda directory: write_merged(checkpoint, directory))


def _run_stage(
    config: RunConfig, stage: Stage, directory: RunDir, checkpoint: Path | None, services: Services
) -> Path:
    print(f"── {stage.name}: {stage.stage} {'from ' + str(checkpoint) if checkpoint else ''}", flush=True)
    if isinstance(stage, RlStage):
        assert checkpoint is not None
        final = run_rl(config, stage, directory, checkpoint, services)
    else:
        final = _run_worker_stage(config, stage, directory, checkpoint)
    directory.finish_stage(stage.name, final)
    return final


def _run_worker_stage(
    config: RunConfig, stage: TinyModelStage | SftStage | DpoStage, directory: RunDir, checkpoint: Path | None
) -> Path:
    """A stage whose whole work happens in Ray Train workers."""
    if isinstance(stage, SftStage | DpoStage):
        datasets = {name: load_samples(name, config.base_dir) for name in stage.data.mixture}
        directory.check_data({name: dataset.fingerprint for name, dataset in datasets.items()})
        steps = stage.steps_for(sum(map(len, datasets.values())))
        if isinstance(stage, DpoStage) and stage.eval_dataset is not None:
            held_out = load_samples(stage.eval_dataset, config.base_dir)
            directory.check_data({stage.eval_dataset: held_out.fingerprint})
    else:
        steps = stage.steps
    arguments = {
        "config": config,
        "stage": stage,
        "run": directory,
        "checkpoint": checkpoint,
        "resume": directory.newest_checkpoint(stage.name),
    }
    with showing_progress(directory, stage.name, steps):
        run_workers(
            WORKERS[stage.stage],
            arguments,
            num_workers=stage.num_workers,
            use_gpu=config.cluster.num_gpus > 0,
            scratch=directory.scratch(stage.name),
        )
    final = directory.newest_checkpoint(stage.name)
    assert final is not None
    return final


def evaluate(config: RunConfig, name: str, directory: RunDir, checkpoint: Path, services: Services) -> None:
    """Measure a stage's final checkpoint (or `base`) on every evaluation task, unless it has been done."""
    if config.evaluation is None or not config.is_evaluated(name):
        return
    done = {(row["stage"], row["task"]) for row in read_evaluations(directory)}
    for task in config.evaluation.tasks:
        if (name, task.name) in done:
            continue
        pool = services.pool_with(checkpoint, config.evaluation_rollout)
        row = evaluate_task(pool, config, task, directory, name)
        print(
            f"{name}  {task.name}: accuracy {row['accuracy']:.3f}"
            f"  [{row['low']:.3f}, {row['high']:.3f}]  n {row['n']}  {row['seconds']} s",
            flush=True,
        )
