"""Rows that a stage does not learn from, on which it measures its loss."""

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Positive, Section
from posttrain.config.data import DatasetName, Use
from posttrain.config.stage import DatasetUse


class HeldOutKeys(Section):
    """The keys of stages that measure held-out rows."""

    eval_dataset: DatasetName | None = Field(
        default=None,
        description="Held-out rows, measured before the first step, on the way and at the end: pairs of dpo, "
        "dialogues of sft, whose loss is weighted as the training loss is.",
    )
    eval_steps: Positive | None = Field(
        default=None, description="Steps between measurements on eval_dataset; only first and last if absent."
    )

    def held_out(self, use: Use) -> list[DatasetUse]:
        """List the held-out dataset, if there is one."""
        names = [] if self.eval_dataset is None else [self.eval_dataset]
        return [DatasetUse(("eval_dataset",), name, use) for name in names]

    @model_validator(mode="after")
    def _check_held_out(self) -> "HeldOutKeys":
        if self.eval_steps is not None and self.eval_dataset is None:
            raise MisfitError(
                "eval_steps", "there are no held-out rows to measure", "name an eval_dataset, or remove it"
            )
        return self
