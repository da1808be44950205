"""What every step of a curation has."""

from typing import Annotated

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Section
from posttrain.config.document import Key
from posttrain.config.tasks import PluginRef

Share = Annotated[float, Field(ge=0, le=1)]


class FilterStep(Section):
    """What every step has."""

    name: Name = Field(default="", description="Name in the funnel; the filter's if absent.")
    domains: list[Name] = Field(
        default_factory=list,
        description="Domains or sub-categories whose rows this step looks at, the others pass; all if empty.",
    )

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """List the rewards that the step uses, each with the path of its key from the step."""
        return []

    def plugins(self) -> list[PluginRef]:
        """List everything that the step's verdicts depend on and a user may have written."""
        return [reward for _, reward in self.rewards()]

    def named_domains(self) -> list[tuple[Key, list[str]]]:
        """List what has to be in the taxonomy: domains or sub-categories, with the path of their key."""
        return [(("domains",), self.domains)]

    @model_validator(mode="before")
    @classmethod
    def _name_after_filter(cls, value: object) -> object:
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("filter"), str):
            return {**value, "name": value["filter"]}
        return value


def check_band(low: float | None, high: float | None) -> None:
    """Refuse a band without room in it."""
    if low is not None and high is not None and low > high:
        raise MisfitError("min", f"{low:g} is above max, {high:g}", "exchange them")
