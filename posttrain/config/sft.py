"""Supervised fine-tuning on dialogues."""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Positive, PositiveFloat, Section
from posttrain.config.data import DataConfig, Use
from posttrain.config.held_out import HeldOutKeys
from posttrain.config.learning import DrawingStage
from posttrain.config.memory import LearnerLoad
from posttrain.config.stage import CurationUse, DatasetUse, Surroundings

Normalization = Literal["sqrt", "token", "sample"]


class LossConfig(Section):
    """How the losses of the tokens are combined into one."""

    normalization: Normalization = Field(
        default="sqrt",
        description="Weight of a sample with T supervised tokens in the mean: √T, T, or the same for all.",
    )


class LengthCurriculum(Section):
    """Two phases: short samples alone, then long ones that alternate with short ones."""

    short_length: Positive = Field(
        default=32768, description="Most tokens of a short sample; every other one up to max_length is long."
    )
    short_phase: float = Field(
        default=0.5, ge=0, lt=1, description="Share of the steps in which only short samples come."
    )
    long_share: float = Field(
        default=0.5, gt=0, le=1, description="Share of long samples in every stretch of the second phase."
    )


class SftData(DataConfig):
    """The data of supervised fine-tuning, and how samples are packed and ordered."""

    packing: bool = Field(
        default=False,
        description="Put the samples of a step into rows of up to max_length tokens instead of padding them; "
        "they do not see each other, and the loss stays the same. per_device_batch_size is then the samples "
        "that a worker takes on average in a step.",
    )
    curriculum: LengthCurriculum | None = Field(
        default=None,
        description="Order by length, for which every sample's tokens are counted once; packed rows of the "
        "first phase hold up to short_length tokens. Samples of all lengths are mixed if absent.",
    )

    def length_rows(self) -> list[tuple[str, str]]:
        """Return the rows of batch arithmetic about packing, and about the phases of a curriculum."""
        rows, curriculum = [], self.curriculum
        if self.packing:
            phases = "" if curriculum is None else f", in the first phase {curriculum.short_length:,}"
            rows.append(("packing", f"a step's samples in rows of up to {self.max_length:,} tokens{phases}"))
        if curriculum is not None:
            text = f"{curriculum.short_phase:.0%} of the steps up to {curriculum.short_length:,} tokens, then"
            long = f"{curriculum.long_share:.0%} of the samples longer, up to {self.max_length:,}"
            rows.append(("curriculum", f"{text} {long}"))
        return rows

    @model_validator(mode="after")
    def _check_curriculum(self) -> "SftData":
        if self.curriculum is not None and self.curriculum.short_length >= self.max_length:
            raise MisfitError(
                "curriculum.short_length",
                f"no sample is longer than {self.curriculum.short_length} and fits max_length ="
                f" {self.max_length}",
                "raise max_length, or lower it",
            )
        return self


class SupervisedStage(DrawingStage):
    """What the stages share that learn from dialogues with TRL's SFTTrainer."""

    data: SftData = Field(description="What is learned from.")

    @property
    @abstractmethod
    def normalization(self) -> Normalization:
        """How the losses of a sample's tokens are weighted."""

    @property
    def mixture(self) -> dict[str, float]:
        """Share of each dataset in every stretch of training."""
        return self.data.mixture

    @property
    def by_tokens(self) -> bool:
        """Whether the shares are shares of tokens and not of samples."""
        return self.data.mixture_by == "tokens"

    @property
    def batch_tokens(self) -> int:
        """Tokens of a row, or of the samples that are padded to the longest."""
        return self.data.max_length * (1 if self.data.packing else self.per_device_batch_size)

    def load(self) -> LearnerLoad:
        """Return what a worker holds; packed samples of a step may fill more rows than one."""
        load, size = super().load(), self.per_device_batch_size
        return replace(load, accumulates=size > 1) if self.data.packing else replace(load, rows=size)

    def long_samples_from(self, rows: int) -> int:
        """Return the first draw of the curriculum's second phase, given the rows of one epoch."""
        assert self.data.curriculum is not None
        return round(self.data.curriculum.short_phase * self.steps_for(rows)) * self.global_batch_size

    def arithmetic(self) -> list[tuple[str, str]]:
        """Return the calculations of batches, packing and curriculum."""
        return super().arithmetic() + self.data.length_rows()

    @model_validator(mode="after")
    def _check_length_and_packing(self) -> "SupervisedStage":
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise MisfitError(
                "max_steps",
                "the length is either max_steps or num_train_epochs",
                "write exactly one of the two",
            )
        if self.data.packing and self.gradient_accumulation_steps > 1:
            raise MisfitError(
                "gradient_accumulation_steps",
                "packing decides from the samples' lengths how many rows a worker takes one after another",
                f"leave it out, and write per_device_batch_size: "
                f"{self.per_device_batch_size * self.gradient_accumulation_steps}",
            )
        return self


class SftStage(SupervisedStage, HeldOutKeys):
    """Supervised fine-tuning: TRL's trainer on Ray Train."""

    runner: ClassVar[str] = "posttrain.training.supervised.runners:SftRunner"
    use: ClassVar[Use] = "dialogues"

    stage: Literal["sft"] = Field(description="Kind of the stage.")
    name: Name = Field(default="sft", description="Name of the stage's folder and of its metrics.")
    loss: LossConfig = Field(default_factory=LossConfig, description="The loss.")
    curation: str | None = Field(
        default=None,
        min_length=1,
        description="Curation recipe, by name or path, that the dataset of the mixture that it names goes "
        "through first. Its own `name` and `output_dir` do not count: the results are in the stage's folder.",
    )
    eval_epochs: PositiveFloat | None = Field(
        default=None,
        description="Passes over the data between evaluations by generation, on the tasks that the stage is "
        "measured on anyway; only at its end if absent.",
    )

    @property
    def normalization(self) -> Normalization:
        """How the losses of a sample's tokens are weighted."""
        return self.loss.normalization

    def datasets(self) -> list[DatasetUse]:
        """List the mixture: dialogues, or prompts if a curation writes the answers first."""
        use: Use = "dialogues" if self.curation is None else "prompts"
        mixture = [DatasetUse(("data", "mixture", name), name, use) for name in self.data.mixture]
        return mixture + self.held_out("dialogues")

    def curations(self) -> list[CurationUse]:
        """Return the recipe that `curation` names."""
        if self.curation is None:
            return []
        return [CurationUse(("curation",), self.curation, list(self.data.mixture))]

    def evaluation_steps(self, rows: int) -> list[int]:
        """Return the steps before the last after which checkpoints are measured, given an epoch's rows."""
        if self.eval_epochs is None:
            return []
        every = max(1, round(self.eval_epochs * rows / self.global_batch_size))
        return list(range(every, self.steps_for(rows), every))

    def check_in_run(self, around: Surroundings) -> None:
        """Check also that `eval_epochs` has something to measure."""
        if self.eval_epochs is not None and not around.measured_after:
            raise MisfitError(
                "eval_epochs",
                "nothing is measured after this stage",
                "add a task to `evaluation`, or remove it",
            )
        super().check_in_run(around)
