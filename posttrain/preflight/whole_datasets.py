"""The datasets of a run from the first row to the last: can each be used, and shown to the run's model?

This takes as long as reading the data and the headers of their images, but only once: what is found is kept
in the cache, where a run finds it as well.
"""

from posttrain.config import load_dataset_config, missing_variable
from posttrain.config.stage import DatasetUse
from posttrain.preflight.findings import Examination
from posttrain.rendering.row_checks import KnownRenderer, RenderCheck, local_checkpoint, tools_fault


def examine_whole_datasets(look: Examination) -> None:
    """Open every dataset that is on this machine, and look whether rows and tools can be shown."""
    model = look.config.model
    local = local_checkpoint(model)
    renderer = None if local is None else KnownRenderer(local, model)
    uses = {(use.name, use.use): use for use in look.config.datasets()}
    configs = {name: load_dataset_config(name, look.base_dir) for name, _ in uses}
    here = [
        use
        for use in uses.values()
        if configs[use.name].source.path is not None and missing_variable(configs[use.name]) is None
    ]
    if renderer is not None and here and not _is_loadable(look, renderer):
        return
    for use in here:
        _examine_rows(look, use, renderer)
    made = [name for name, config in configs.items() if config.source.path is None]
    if made:
        look.note(f"rows that are generated when the run starts were not looked at: {', '.join(made)}")
    if renderer is not None:
        _examine_tools(look, renderer)
    elif here:
        what = (
            "the run makes it itself" if model.name_or_path is None else f"{model.name_or_path} is not here"
        )
        look.note(f"whether rows can be shown to the model is seen when a stage starts: {what}")


def _is_loadable(look: Examination, renderer: KnownRenderer) -> bool:
    """Look whether tokenizer, processor and chat template of the model can be used."""
    try:
        return bool(renderer.identity)
    except (OSError, ValueError) as error:  # transformers raises both
        look.problem(("model", "name_or_path"), f"the model's tokenizer or processor cannot be used: {error}")
        return False


def _examine_rows(look: Examination, use: DatasetUse, renderer: KnownRenderer | None) -> None:
    """Open a dataset as it is used; rows that are left out are told by a warning."""
    from posttrain.data.sources import load_samples  # noqa: PLC0415  (it loads OpenCV, and `validate` is quick)

    check = None if renderer is None else RenderCheck(renderer, use.use)
    look.attempt(use.key, load_samples, use.name, look.base_dir, use=use.use, check=check)


def _examine_tools(look: Examination, renderer: KnownRenderer) -> None:
    """Look whether the prompts of a task can announce its tools."""
    for use in look.config.tasks():
        here = [tool for tool in use.task.tools if not tool.missing_variables()]
        tools = [*look.plugins.load_tools([tool.model_dump() for tool in here], look.base_dir)]
        if use.task.environment is not None:
            tools += look.plugins.load_game(use.task.environment.model_dump(), look.base_dir).tools
        if tools and (reason := tools_fault(renderer, [tool.spec for tool in tools])):
            look.problem((*use.key, "tools" if use.task.tools else "environment"), reason)
