"""Direct preference optimisation: pairs of answers, one preferred to the other."""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Positive, PositiveFloat, Section, check_shares
from posttrain.config.data import Use
from posttrain.config.held_out import HeldOutKeys
from posttrain.config.learning import DrawingStage
from posttrain.config.memory import LearnerLoad
from posttrain.config.stage import DatasetUse


class PreferenceData(Section):
    """The data of a preference stage: rows with `chosen` and `rejected` beside the prompt."""

    mixture: dict[str, PositiveFloat] = Field(
        min_length=1, description="Share of each dataset in every stretch of training; the shares sum to 1."
    )
    max_length: Positive = Field(
        default=32768,
        description="Most tokens of a prompt with one of its answers, images included; a pair with a longer "
        "one is left out.",
    )

    @model_validator(mode="after")
    def _check(self) -> "PreferenceData":
        check_shares("mixture", self.mixture)
        return self


class DpoStage(DrawingStage, HeldOutKeys):
    """Direct preference optimisation: TRL's trainer on Ray Train.

    The reference is the checkpoint that the stage starts from: a frozen copy of it, or with `lora` the model
    itself without its adapters, which takes no memory.
    """

    runner: ClassVar[str] = "posttrain.training.supervised.runners:DpoRunner"
    use: ClassVar[Use] = "pairs"

    stage: Literal["dpo"] = Field(description="Kind of the stage.")
    name: Name = Field(default="dpo", description="Name of the stage's folder and of its metrics.")
    data: PreferenceData = Field(
        description="The pairs. Without max_steps and num_train_epochs, as many are drawn as there are."
    )
    loss_type: Literal["sigmoid", "ipo"] = Field(
        default="sigmoid", description="DPO's own loss (arXiv 2305.18290), or IPO's (arXiv 2310.12036)."
    )
    beta: PositiveFloat = Field(
        default=0.1, description="How closely the policy is held to the reference: higher is closer."
    )
    learning_rate: PositiveFloat = Field(default=1e-6, description="Peak learning rate.")

    def datasets(self) -> list[DatasetUse]:
        """List the pairs that are learned from, and the held-out ones."""
        mixture = [DatasetUse(("data", "mixture", name), name, "pairs") for name in self.data.mixture]
        return mixture + self.held_out("pairs")

    @property
    def mixture(self) -> dict[str, float]:
        """Share of each dataset in every stretch of training."""
        return self.data.mixture

    @property
    def batch_tokens(self) -> int:
        """Tokens of the answers of all pairs, padded to the longest."""
        return 2 * self.per_device_batch_size * self.data.max_length

    def load(self) -> LearnerLoad:
        """Return what a worker holds, with the reference unless that is the same model."""
        return replace(super().load(), rows=2 * self.per_device_batch_size, reference=self.lora is None)

    def measured_by_itself(self) -> frozenset[str]:
        """Return the name of the held-out pairs."""
        return frozenset() if self.eval_dataset is None else frozenset({self.eval_dataset})

    @model_validator(mode="after")
    def _check(self) -> "DpoStage":
        if self.max_steps is not None and self.num_train_epochs is not None:
            raise MisfitError(
                "max_steps",
                "the length is either max_steps or num_train_epochs",
                "write one of the two, or neither to see each pair once",
            )
        return self
