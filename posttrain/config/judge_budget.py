"""What the judges of a run may cost."""

from typing import Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, NaturalFloat, Positive, PositiveFloat, Section


class TokenPriceConfig(Section):
    """What a million tokens of a judge's model cost, in any currency."""

    input: NaturalFloat = Field(description="Price of a million tokens that are sent.")
    output: NaturalFloat = Field(description="Price of a million tokens that the judge writes.")


class JudgeBudgetConfig(Section):
    """Limits of calls and money for all judges of the run together, resumes included."""

    max_calls: Positive | None = Field(
        default=None, description="Most requests to judges, retries included; no limit if absent."
    )
    max_cost: PositiveFloat | None = Field(
        default=None, description="Most money, in the currency of `prices`; no limit if absent."
    )
    prices: dict[str, TokenPriceConfig] = Field(
        default_factory=dict,
        description="By the model's name in the judge's params, what its tokens cost. With them the "
        "report says what judges cost.",
    )
    on_exhausted: Literal["stop", "skip"] = Field(
        default="stop",
        description="Once a limit is reached: stop the run with an error, or skip the judges, so that the "
        "other rewards of their tasks count alone. A group is judged as a whole or not at all.",
    )

    @model_validator(mode="after")
    def _check(self) -> "JudgeBudgetConfig":
        if self.max_cost is not None and not self.prices:
            raise MisfitError(
                "max_cost", "without prices nothing costs anything", "add `prices`, or remove it"
            )
        if self.max_calls is None and self.max_cost is None:
            if "on_exhausted" in self.model_fields_set:
                raise MisfitError("on_exhausted", "there is no limit to reach", "set max_calls or max_cost")
            if not self.prices:
                raise MisfitError(
                    "max_calls", "the budget has neither a limit nor prices", "set one, or remove it"
                )
        return self
