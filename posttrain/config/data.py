"""Datasets, and how stages draw from them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Positive, PositiveFloat, Section, check_shares
from posttrain.config.paths import DataPath, LocalPath

FormatName = Literal[
    "canonical", "ms_swift", "sharegpt", "alpaca", "llama_factory", "trl", "openai", "qwen", "easyr1"
]
_COMMON = ("id", "ground_truth", "tools", "images", "videos")
#: What other tools call these, and the system text of a row; every format but the canonical one reads them.
_OTHERS = (*_COMMON, "image", "video", "functions", "tool_defs", "system")
_SHAREGPT = ("conversations", "chosen", "rejected", "kto_tag", *_OTHERS)
#: Columns that a format reads itself; a row's others are kept for rewards and environments.
FORMAT_COLUMNS: dict[str, tuple[str, ...]] = {
    "canonical": ("messages", "chosen", "rejected", "columns", *_COMMON),
    "ms_swift": (
        *("messages", "query", "response", "history", "objects", "label"),
        *("rejected_response", "rejected_messages", "rejected_images", *_OTHERS),
    ),
    "sharegpt": _SHAREGPT,
    "qwen": _SHAREGPT,
    "alpaca": (
        *("instruction", "input", "output", "history"),
        *("chosen", "rejected", "kto_tag", *_OTHERS),
    ),
    "trl": ("messages", "prompt", "completion", "chosen", "rejected", "label", *_OTHERS),
    "openai": ("messages", "input", "preferred_output", "non_preferred_output", *_OTHERS),
    "easyr1": ("problem", "answer", *_OTHERS),
}
#: What a stage or an evaluation uses a dataset's rows for.
Use = Literal["prompts", "episodes", "dialogues", "pairs"]

#: What LLaMA-Factory's tags may be called.
TAGS = (
    *("role_tag", "content_tag", "user_tag", "assistant_tag"),
    *("system_tag", "observation_tag", "function_tag"),
)


class SourceConfig(Section):
    """The origin of the rows: files, or a generator that writes a file."""

    path: DataPath | None = Field(
        default=None,
        min_length=1,
        description="A JSONL, JSON or Parquet file, a folder of these, or a Hugging Face dataset on disk; "
        "for llama_factory a dataset_info.json; or a dataset of the Hub that its cache has: org/name, "
        "org/name/folder. Relative to the dataset's YAML file. May begin with an "
        "environment variable: ${POSTTRAIN_DATA}/train.jsonl.",
    )
    split: str | None = Field(
        default=None,
        min_length=1,
        description="The split of a Hugging Face dataset; of a folder, the files that name it by their own "
        "names or their folders' (train-00000-of-00002.parquet, train/a.jsonl), or that begin so. "
        "Several are joined: train+validation. Needed where a folder holds several.",
    )
    entry: str | None = Field(
        default=None, min_length=1, description="Name of the data set in a dataset_info.json."
    )
    images: LocalPath | None = Field(
        default=None,
        min_length=1,
        description="Folder that image paths are relative to, itself relative to the dataset's YAML file; by "
        "default the folder of the rows. Paths that climb, `../images/7.png`, are meant from the rows, and "
        "may lead anywhere in it.",
    )
    generator: str | None = Field(
        default=None, min_length=1, description="Reference of a function that writes the dataset."
    )
    params: dict[str, object] = Field(default_factory=dict, description="Arguments of the generator.")

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        if (self.path is None) == (self.generator is None):
            raise MisfitError(
                "path", "a source is either a path or a generator", "write exactly one of the two"
            )
        if self.path is not None and self.params:
            raise MisfitError("params", "only a generator takes params", "remove them, or name a generator")
        for key in ("split", "entry", "images"):
            if self.generator is not None and getattr(self, key) is not None:
                raise MisfitError(key, "a generator writes one whole file", "remove the key")
        return self


class FilterConfig(Section):
    """Rows to keep: those whose column passes every test that is set."""

    column: str = Field(
        min_length=1,
        description="A column, or one of `prompt` and `response` (texts), `messages`, `images` and `videos`.",
    )
    equals: str | int | float | bool | None = Field(default=None, description="Keep this value.")
    one_of: list[str | int | float | bool] | None = Field(
        default=None, min_length=1, description="Keep these values."
    )
    min: float | None = Field(default=None, description="Least number kept.")
    max: float | None = Field(default=None, description="Greatest number kept.")
    min_length: int | None = Field(
        default=None, ge=0, description="Fewest characters of a text, or entries of a list."
    )
    max_length: int | None = Field(
        default=None, ge=0, description="Most characters of a text, or entries of a list."
    )

    @model_validator(mode="after")
    def _check(self) -> "FilterConfig":
        tests = ("equals", "one_of", "min", "max", "min_length", "max_length")
        if all(getattr(self, test) is None for test in tests):
            raise MisfitError("column", "a filter without a test keeps every row", f"set {', '.join(tests)}")
        return self


class DatasetConfig(Section):
    """One file of `datasets_cfg/`."""

    name: Name = Field(description="Name by which recipes refer to the dataset; the file's name.")
    description: str = Field(min_length=1, description="What a row asks and what the answer is.")
    licence: str = Field(min_length=1, description="Licence of the data (SPDX identifier, or a sentence).")
    source: SourceConfig = Field(description="Where the rows come from.")
    format: FormatName = Field(default="canonical", description="Form of the rows.")
    columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="Where a column of the format is found under another name, `messages: dialogue`; dots "
        "lead into objects. `id: null` numbers the rows.",
    )
    tags: dict[str, str] = Field(
        default_factory=dict, description="Keys and roles of sharegpt turns, as in LLaMA-Factory's `tags`."
    )
    drop_columns: list[str] = Field(
        default_factory=list,
        description="Columns to leave out; dots lead into objects and lists, `messages.timestamp`.",
    )
    keep_columns: list[str] = Field(
        default_factory=list,
        description="Columns for rewards and environments that are called, or look, like a part of the "
        "dialogue; a row with such a column is broken unless it is named here, or dropped.",
    )
    filters: list[FilterConfig] = Field(default_factory=list, description="Rows to keep.")
    max_bad_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of broken rows and images above which nothing starts; up to it they are left out.",
    )

    @model_validator(mode="after")
    def _check(self) -> "DatasetConfig":
        if (self.format == "llama_factory") != (self.source.entry is not None):
            raise MisfitError(
                "source.entry",
                "an entry and the format llama_factory go together",
                "set both for a dataset_info.json; sharegpt and alpaca are formats of their own",
            )
        if self.format == "llama_factory" and (self.columns or self.tags):
            raise MisfitError(
                "columns" if self.columns else "tags",
                "dataset_info.json has its own",
                "change them there, or use the format sharegpt or alpaca",
            )
        known = FORMAT_COLUMNS.get(self.format, ())
        for key, column in self.columns.items():
            if key not in known:
                raise MisfitError(
                    f"columns.{key}",
                    f"the format {self.format} has no such column",
                    f"it has {', '.join(known)}",
                )
            if column is None and key != "id":
                raise MisfitError(f"columns.{key}", "only id may be null", "remove the key, or name a column")
        for column in self.keep_columns:
            if column in known or column in self.drop_columns:
                reads = "it is dropped as well" if column in self.drop_columns else f"{self.format} reads it"
                raise MisfitError(f"keep_columns.{column}", reads, "remove it from keep_columns")
        for tag in self.tags:
            if tag not in TAGS or self.format not in ("sharegpt", "qwen"):
                raise MisfitError(f"tags.{tag}", "no such tag", f"sharegpt's tags are {', '.join(TAGS)}")
        return self

    @property
    def as_it_stands(self) -> bool:
        """Whether rows are read from their file as they are, without being rewritten first."""
        options = (self.columns, self.drop_columns, self.keep_columns, self.filters)
        places = (self.source.split, self.source.images)
        return self.format == "canonical" and not any((*options, *places))


class DataConfig(Section):
    """What a supervised stage draws from."""

    mixture: dict[str, PositiveFloat] = Field(
        min_length=1, description="Share of each dataset in every stretch of training; the shares sum to 1."
    )
    mixture_by: Literal["samples", "tokens"] = Field(
        default="samples", description="What the shares are shares of."
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
