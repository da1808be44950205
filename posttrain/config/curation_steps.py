"""The steps of a curation: what each filter may be told."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Natural, Positive
from posttrain.config.document import Key
from posttrain.config.filter_step import FilterStep, Share, check_band
from posttrain.config.sampling_steps import CallTargetsStep, ImageNeededStep, PassRateStep, RejectionStep
from posttrain.config.tasks import PluginRef


class QueryStep(FilterStep):
    """Drops queries without content, without an answer to verify by, and repeated ones."""

    filter: Literal["query"] = Field(description="Kind of the step.")
    min_chars: Positive = Field(
        default=1,
        description="Least letters, digits and pictures (emoji) of the last user message, in any script.",
    )
    max_chars: Positive = Field(default=100_000, description="Most characters of the whole prompt.")
    drop_repeated: bool = Field(
        default=True, description="Keep only the first of equal prompts with the same images and videos."
    )
    require_ground_truth: bool = Field(
        default=False, description="Drop rows that no answer can be checked by."
    )


class QueryReviewStep(FilterStep):
    """A model keeps, minimally rewrites or drops a query, and says how complex it is."""

    filter: Literal["query_review"] = Field(description="Kind of the step.")
    endpoint: Name = Field(description="Which of `endpoints` is asked.")
    min_complexity: int = Field(default=1, ge=1, le=5, description="Least complexity, from 1 to 5.")
    min_similarity: Share = Field(
        default=0.6, description="Least likeness of a rewritten query to its original; else it is dropped."
    )


class DomainStep(FilterStep):
    """Gives each row a domain and a sub-category of the taxonomy, as columns."""

    filter: Literal["domain"] = Field(description="Kind of the step.")
    endpoint: Name | None = Field(
        default=None, description="Which of `endpoints` classifies; the taxonomy's keywords if absent."
    )
    keep: list[Name] = Field(
        default_factory=list, description="Domains or sub-categories that are kept; all if empty."
    )

    def named_domains(self) -> list[tuple[Key, list[str]]]:
        """List also what is kept."""
        return [*super().named_domains(), (("keep",), self.keep)]


class ResponseStep(FilterStep):
    """Rules on the form of a row's response: there, complete, of the wanted shape, not guessed."""

    filter: Literal["response"] = Field(description="Kind of the step.")
    thinking: Literal["any", "required", "forbidden"] = Field(
        default="any", description="Whether the response begins with <think>…</think>."
    )
    min_reasoning_chars: Natural = Field(
        default=0, description="Least characters before the final answer, so that guesses go."
    )
    max_chars: Positive | None = Field(default=None, description="Most characters of the whole response.")


class RewardStep(FilterStep):
    """A reward judges a row's response: rules such as `repetition`, models such as `judge`, or your own."""

    filter: Literal["reward"] = Field(description="Kind of the step.")
    reward: PluginRef = Field(description="Reference of the reward, with its params.")
    min: float | None = Field(default=None, description="Least value that is kept.")
    max: float | None = Field(default=None, description="Greatest value that is kept.")
    unscored: Literal["keep", "drop"] = Field(
        default="keep", description="What becomes of rows to which the reward does not apply."
    )

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """Return the one that judges."""
        return [(("reward",), self.reward)]

    @model_validator(mode="after")
    def _check(self) -> "RewardStep":
        if self.min is None and self.max is None:
            raise MisfitError("min", "without min or max nothing is dropped", "set one of them")
        check_band(self.min, self.max)
        return self


Step = Annotated[
    QueryStep
    | QueryReviewStep
    | DomainStep
    | ResponseStep
    | RewardStep
    | RejectionStep
    | PassRateStep
    | CallTargetsStep
    | ImageNeededStep,
    Field(discriminator="filter"),
]
