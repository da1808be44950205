"""The curations of a run's stages, and the models behind addresses that it asks."""

from collections.abc import Sequence

from posttrain.config.curation import NO_REWARDS, CurationConfig, load_curation
from posttrain.config.document import Key
from posttrain.config.endpoints import EarlierModelConfig, EndpointConfig
from posttrain.config.sampling_steps import PlayingStep
from posttrain.config.stage import CurationUse
from posttrain.curation.checks import VARIABLES, missing_address, recipe_faults, withheld_key
from posttrain.curation.taxonomy import load_taxonomy
from posttrain.preflight.findings import Examination
from posttrain.preflight.models import checkpoint_faults, examine_length


def examine_curations(look: Examination) -> None:
    """Look at the recipes of all stages."""
    for index, stage in enumerate(look.config.stages):
        earlier = [each.name for each in look.config.stages[:index]]
        for use in stage.curations():
            _examine_recipe(look, use, ("stages", index, *use.key), earlier)


def examine_endpoints(look: Examination) -> None:
    """Look whether the models that stages ask have an address."""
    for index, stage in enumerate(look.config.stages):
        for use in stage.endpoints():
            _examine_address(look, use.endpoint, ("stages", index, *use.key), "the teacher")


def _examine_recipe(look: Examination, use: CurationUse, key: Key, earlier: Sequence[str]) -> None:
    """Look at a recipe's rewards, domains and models, and whether its rows are learned from."""
    recipe = look.load(key, use.recipe, load_curation, use.recipe, look.base_dir)
    if recipe is None:
        return
    if recipe.data not in use.datasets:
        reason = f"the recipe {use.recipe!r} curates {recipe.data!r}, which the stage does not learn from"
        look.problem(key, reason, "put it there, or choose another recipe")
    if reason := _no_task(recipe, use):
        look.problem(key, f"{use.recipe}: {reason}")
    for name, entry in recipe.endpoints.items():
        what = f"{use.recipe}: endpoints.{name}"
        if isinstance(entry, EndpointConfig):
            _examine_address(look, entry, key, what)
            continue
        if isinstance(entry, EarlierModelConfig):
            if entry.stage not in earlier:
                look.problem(key, f"{what}.stage: no earlier stage is called {entry.stage!r}", "name one")
            continue
        for reason in checkpoint_faults(entry.checkpoint):
            look.problem(key, f"{what}: {entry.checkpoint} {reason}", "fetch or export the checkpoint again")
        examine_length(look, key, entry.checkpoint, entry.max_length)
    taxonomy = look.load(key, str(recipe.taxonomy), load_taxonomy, recipe.taxonomy)
    if taxonomy is not None:
        for fault in recipe_faults(recipe, taxonomy, look.plugins):
            look.problem(key, f"{use.recipe}: {fault.text}")


def _no_task(recipe: CurationConfig, use: CurationUse) -> str:
    """Return why the model at hand cannot play what a recipe wants it to; "" if it can, or is not to."""
    steps = [step for step in recipe.steps if isinstance(step, PlayingStep) and step.endpoint is None]
    tasks = [task for task in use.tasks if task.data == recipe.data]
    if not steps or (len(tasks) == 1 and tasks[0].rewards):
        return ""
    reason = f"step {steps[0].name!r} names no endpoint, so the stage's own model is to play the stage's task"
    if not use.tasks:
        return f"{reason}, but only an rl stage has one; name an `endpoint`, and what it does there"
    if len(tasks) == 1:
        return f"{reason}, but {tasks[0].name!r} {NO_REWARDS}"
    return f"{reason}, but {len(tasks)} of its tasks are of {recipe.data!r}; it has to be one"


def _examine_address(look: Examination, endpoint: EndpointConfig, key: Key, what: str) -> None:
    """Note an endpoint that has no address on this machine, or to which no key goes."""
    if note := withheld_key(endpoint):
        look.note(f"{what}: {note}")
    if reason := missing_address(endpoint):
        look.missing(key, f"{what}: {reason}", f"set base_url, or the environment variable {VARIABLES.url}")
