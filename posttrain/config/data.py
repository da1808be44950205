"""Datasets, and what a stage draws from them."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Positive, PositiveFloat, Section, check_shares


class SourceConfig(Section):
    """Where the rows come from: a file, or a generator that writes one."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="A JSONL file in the canonical format, relative to the dataset's YAML file. May begin "
        "with an environment variable: ${POSTTRAIN_DATA}/train.jsonl.",
    )
    generator: str | None = Field(
        default=None, min_length=1, description="Reference of a function that writes the dataset."
    )
    params: dict[str, Any] = Field(default_factory=dict, description="Arguments of the generator.")

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        if (self.path is None) == (self.generator is None):
            raise MisfitError(
                "path", "a source is either a path or a generator", "write exactly one of the two"
            )
        if self.path is not None and self.params:
            raise MisfitError("params", "only a generator takes params", "remove them, or name a generator")
        return self


class DatasetConfig(Section):
    """One file of `datasets_cfg/`."""

    name: Name = Field(description="Name by which recipes refer to the dataset; the file's name.")
    description: str = Field(min_length=1, description="What a row asks and what the answer is.")
    licence: str = Field(min_length=1, description="Licence of the data (SPDX identifier, or a sentence).")
    source: SourceConfig = Field(description="Where the rows come from.")
    format: Literal["canonical"] = Field(default="canonical", description="Form of the rows.")


class DataConfig(Section):
    """What a supervised stage draws from."""

    mixture: dict[str, PositiveFloat] = Field(
        min_length=1, description="Share of each dataset in every stretch of training; the shares sum to 1."
    )
    max_length: Positive = Field(
        default=32768, description="Longest sample in tokens, images included; longer ones are left out."
    )

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        check_shares("mixture", self.mixture)
        return self


DatasetName = Annotated[
    str, Field(min_length=1, description="Name of a dataset in datasets_cfg/, or path of its YAML file.")
]
