"""A run: its stages one after another, an evaluation after each, and the report at the end.

check the data
for each stage:
runner   = the one that the stage's config names
final    = runner.run(), from the checkpoint that the stage starts from
evaluate = the final checkpoint on the stage's tasks
write the report
"""

from pathlib import Path

from posttrain.config import RunConfig, StageConfig
from posttrain.config.fitting import model_load, stage_misfits
from posttrain.config.shapes import model_shape
from posttrain.evaluation.evaluate import final_evaluations, read_evaluations, record_evaluation
from posttrain.evaluation.table import evaluation_table, rewards_table
from posttrain.first_party import PLUGINS
from posttrain.plugins import resolve
from posttrain.preflight.devices import cards_here
from posttrain.run.cluster import cluster
from posttrain.run.directory import RunDir
from posttrain.run.process import ending_on_sigterm, working_on
from posttrain.training.data_check import check_run_data
from posttrain.training.engines_and_rewards import EnginesAndRewards
from posttrain.training.run_at_work import RunAtWork, StageRunnerFactory, standalone, step_in_name
from posttrain.training.shared_data import check_shared_data
from posttrain.viewer import write_report


class DoesNotFit(ValueError):
    """A process of a stage is larger than a GPU."""


def run(config: RunConfig, *, resume: bool = False, allow_changes: bool = False) -> Path:
    """Run every stage that is not finished, evaluate, and write the report.

    Args:
        config: The resolved settings.
        resume: Whether to continue a run of this name.
        allow_changes: Whether to continue even if settings or data have changed since the run began.

    Returns:
        The run's directory.

    Raises:
        RunInUse: If another process works on the run.
        RunStopped: If SIGTERM came; the progress is saved.
    """
    with working_on(RunDir.of(config).path), ending_on_sigterm():
        directory = RunDir.create(config, resume=resume, allow_changes=allow_changes)
        check_run_data(config, directory)
        with cluster(**config.cluster.model_dump(exclude={"placement"})) as gpus:
            settled = config.on(gpus)
            if config.cluster.address:
                check_shared_data(settled)
            card = cards_here().memory if settled.use_gpu and not config.cluster.address else None
            with EnginesAndRewards(settled, directory, PLUGINS) as services:
                execute(RunAtWork(settled, directory, services, PLUGINS, card=card))
        report = write_report(directory.path)
        if measured := read_evaluations(directory):
            final = final_evaluations(measured)
            print(evaluation_table(final), rewards_table(final), sep="\n\n")
        print(f"report: {report}")
        return directory.path


def execute(work: RunAtWork) -> None:
    """Run and measure the stages of a run, in order, except those that are finished."""
    if work.config.model.name_or_path is not None:
        given = Path(work.config.model.name_or_path)
        merged = work.run.path / "base" / f"checkpoint-{step_in_name(given)}"
        work.checkpoints["base"] = standalone(given, merged)
        called = "base" if work.config.stages else name_of(given)
        work.evaluate("base", work.checkpoints["base"], called)
    for stage in work.config.stages:
        work.checkpoints[stage.name] = run_stage(work, stage)


def name_of(checkpoint: Path) -> str:
    """Return what results call a model that is measured by itself: the stage that made it, or its name."""
    return checkpoint.absolute().parent.name if step_in_name(checkpoint) else checkpoint.name


def check_memory(work: RunAtWork, stage: StageConfig) -> None:
    """Compare what a stage's processes take with the GPUs; print what may not fit.

    Raises:
        DoesNotFit: If something cannot fit.
    """
    start = work.start_of(stage)
    shape = (
        None
        if start is None
        else model_shape(work.config.model.model_copy(update={"name_or_path": str(start)}))
    )
    if shape is None or work.card is None:
        return
    model, gpus = model_load(work.config.model, shape), work.config.cluster.num_gpus or 0
    shared = work.config.cluster.placement == "shared"
    for misfit in stage_misfits(model, stage, work.card, gpus, shared):
        if misfit.certain:
            raise DoesNotFit(f"{stage.name}: {misfit.reason} → {misfit.remedy}")
        print(f"{stage.name} may not fit: {misfit.reason} → {misfit.remedy}", flush=True)


def run_stage(work: RunAtWork, stage: StageConfig) -> Path:
    """Run one stage if it is not finished, and measure its final checkpoint.

    Returns:
        The model that later stages start from. A stage with LoRA keeps its adapters, and beside them a copy
        of the model with the adapters merged. So every engine, evaluation and stage after it gets an ordinary
        model, and the adapters of the next stage have a base that PEFT, transformers and vLLM can load.
    """
    runner = resolve(stage.runner, "posttrain.stages", StageRunnerFactory)(work, stage)
    final = work.run.final_checkpoint(stage.name)
    if final is None:
        start = work.start_of(stage)
        print(f"── {stage.name}: {stage.kind} {f'from {start}' if start else ''}", flush=True)
        check_memory(work, stage)
        final = runner.run()
        work.run.finish_stage(stage.name, final)
    whole = standalone(final, final.parent / "merged" / final.name)
    work.evaluate(stage.name, whole)
    for row in runner.measurements():
        record_evaluation(work.run, row)
    return whole
