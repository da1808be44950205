"""The curations of a run's stages, and the models behind addresses that it asks."""

from posttrain.config.curation import load_curation
from posttrain.config.document import Key
from posttrain.config.endpoints import EndpointConfig
from posttrain.config.stage import CurationUse
from posttrain.curation.checks import VARIABLES, missing_address, recipe_faults
from posttrain.curation.taxonomy import load_taxonomy
from posttrain.preflight.findings import Examination


def examine_curations(look: Examination) -> None:
    """Look at the recipes of all stages."""
    for index, stage in enumerate(look.config.stages):
        for use in stage.curations():
            _examine_recipe(look, use, ("stages", index, *use.key))


def examine_endpoints(look: Examination) -> None:
    """Look whether the models that stages ask have an address."""
    for index, stage in enumerate(look.config.stages):
        for use in stage.endpoints():
            _examine_address(look, use.endpoint, ("stages", index, *use.key), "the teacher")


def _examine_recipe(look: Examination, use: CurationUse, key: Key) -> None:
    """Look at a recipe's rewards, domains and models, and whether its rows are learned from."""
    recipe = look.load(key, use.recipe, load_curation, use.recipe, look.base_dir)
    if recipe is None:
        return
    if recipe.data not in use.datasets:
        reason = f"the recipe {use.recipe!r} curates {recipe.data!r}, which is not in the stage's mixture"
        look.problem(key, reason, "put it in data.mixture, or choose another recipe")
    for name, entry in recipe.endpoints.items():
        if isinstance(entry, EndpointConfig):
            _examine_address(look, entry, key, f"{use.recipe}: endpoints.{name}")
    taxonomy = look.load(key, str(recipe.taxonomy), load_taxonomy, recipe.taxonomy)
    if taxonomy is not None:
        for fault in recipe_faults(recipe, taxonomy, look.plugins):
            look.problem(key, f"{use.recipe}: {fault.text}")


def _examine_address(look: Examination, endpoint: EndpointConfig, key: Key, what: str) -> None:
    """Note an endpoint that has an address in no file and, on this machine, in no variable."""
    if reason := missing_address(endpoint):
        look.missing(key, f"{what}: {reason}", f"set base_url, or the environment variable {VARIABLES.url}")
