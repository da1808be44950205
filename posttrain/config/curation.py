"""A curation: where rows come from, which models are asked, and the filters that the rows pass in order."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from posttrain.config.base import MisfitError, Name, Natural, NaturalFloat, Positive, Section
from posttrain.config.data import DatasetName
from posttrain.config.document import Key, read_document
from posttrain.config.endpoints import CheckpointConfig, ModelEntry
from posttrain.config.errors import ConfigError, Problem
from posttrain.config.model import ClusterConfig
from posttrain.config.paths import LocalPath, relative_to
from posttrain.config.problems import problems_of
from posttrain.config.tasks import PluginRef
from posttrain.files.nearest import did_you_mean

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

    def named_domains(self) -> list[tuple[Key, list[str]]]:
        """List what has to be in the taxonomy: domains or sub-categories, with the path of their key."""
        return [(("domains",), self.domains)]

    @model_validator(mode="before")
    @classmethod
    def _name_after_filter(cls, value: object) -> object:
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("filter"), str):
            return {**value, "name": value["filter"]}
        return value


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
        _check_band(self.min, self.max)
        return self


class SamplingStep(FilterStep):
    """Steps that let a model answer and compare its answers with the ground truth."""

    endpoint: Name = Field(description="Which of `endpoints` answers.")
    reward: PluginRef = Field(description="Reward that an answer must earn in full to be right.")
    samples: Positive = Field(default=8, le=256, description="Answers to each query.")
    temperature: NaturalFloat = Field(default=1.0, description="Sampling temperature.")
    max_new_tokens: Positive = Field(default=4096, description="Longest answer, in tokens.")

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """Return the one that says which answers are right."""
        return [(("reward",), self.reward)]

    @model_validator(mode="after")
    def _check_samples(self) -> "SamplingStep":
        if self.samples > 1 and self.temperature == 0:
            raise MisfitError(
                "samples", "at temperature 0 every answer is the same", "set samples: 1, or a temperature"
            )
        return self


class AnswerCheck(Section):
    """A reward that an answer must not fall short of."""

    reward: PluginRef = Field(description="Reference of the reward, with its params.")
    min: float = Field(description="Least value; an answer to which the reward does not apply passes.")


class RejectionStep(SamplingStep):
    """Rejection sampling: the row's response becomes a right answer of the model; rows without one go."""

    filter: Literal["rejection_sampling"] = Field(description="Kind of the step.")
    checks: list[AnswerCheck] = Field(
        default_factory=list, description="More that an answer must pass, such as `repetition`."
    )
    max_chars: Positive | None = Field(default=None, description="Longest answer that is taken.")
    choose: Literal["first", "shortest"] = Field(
        default="first", description="Which of several right answers becomes the response."
    )

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """List also those of the checks."""
        checks = [(("checks", number, "reward"), check.reward) for number, check in enumerate(self.checks)]
        return [*super().rewards(), *checks]


class PassRateStep(SamplingStep):
    """Keeps queries of the wanted difficulty: the share of answers that are right lies in a band."""

    filter: Literal["pass_rate"] = Field(description="Kind of the step.")
    min: Share = Field(default=0.0, description="Least share of right answers that is kept.")
    max: Share = Field(default=1.0, description="Greatest share of right answers that is kept.")
    long_answer_chars: Positive | None = Field(
        default=None,
        description="Queries above `max` stay if their answers have so many characters on average.",
    )

    @model_validator(mode="after")
    def _check(self) -> "PassRateStep":
        _check_band(self.min, self.max)
        if self.min == 0 and self.max == 1:
            raise MisfitError("max", "from 0 to 1 nothing is dropped", "narrow the band by min or max")
        return self


class ImageNeededStep(SamplingStep):
    """Multimodal necessity: drops rows with images that the model also solves without seeing them."""

    filter: Literal["image_needed"] = Field(description="Kind of the step.")
    samples: Positive = Field(default=1, le=256, description="Answers to each query, without its images.")
    temperature: NaturalFloat = Field(default=0.0, description="Sampling temperature.")
    max_pass_rate: Share = Field(default=0.0, description="Greatest share of right answers that is kept.")


Step = Annotated[
    QueryStep
    | QueryReviewStep
    | DomainStep
    | ResponseStep
    | RewardStep
    | RejectionStep
    | PassRateStep
    | ImageNeededStep,
    Field(discriminator="filter"),
]


class CurationConfig(Section):
    """What `posttrain data curate` takes."""

    name: Name = Field(description="Name of the curation; its directory is <output_dir>/<name>.")
    output_dir: str = Field(
        default="curated",
        min_length=1,
        description="Folder of the results and of the models' cached answers.",
    )
    base_dir: str = Field(
        default=".",
        description="Folder against which datasets and plugin files are resolved: the YAML file's if absent.",
    )
    data: DatasetName
    seed: Natural = Field(default=0, description="Seed of the models' sampling.")
    taxonomy: LocalPath | None = Field(
        default=None, min_length=1, description="YAML file of domains; the shipped one if absent."
    )
    endpoints: dict[Name, ModelEntry] = Field(
        default_factory=dict,
        description="The models that steps may ask, by name: at an address, or a checkpoint in own engines.",
    )
    cluster: ClusterConfig = Field(
        default_factory=ClusterConfig, description="Where the engines of checkpoints run."
    )
    max_error_share: Share = Field(
        default=0.01,
        description="Share of a step's rows that may fail (no answer) before the curation stops.",
    )
    steps: list[Step] = Field(min_length=1, description="The filters, in order.")

    @property
    def has_checkpoints(self) -> bool:
        """Whether it needs engines."""
        return any(isinstance(entry, CheckpointConfig) for entry in self.endpoints.values())

    @model_validator(mode="after")
    def _check(self) -> "CurationConfig":
        seen: set[str] = set()
        categorised = False
        for index, step in enumerate(self.steps):
            key = f"steps[{index}]"
            if step.name in seen or step.name == "read":
                raise MisfitError(
                    f"{key}.name", f"the name {step.name!r} is taken", "give the step another `name`"
                )
            seen.add(step.name)
            if step.domains and not categorised:
                raise MisfitError(
                    f"{key}.domains", "no step before this one tells the domains", "put a `domain` step first"
                )
            categorised = categorised or step.filter == "domain"
        self._check_endpoints()
        if self.taxonomy is not None and not categorised:
            raise MisfitError("taxonomy", "no step uses it", "add a `domain` step, or remove it")
        return self

    def _check_endpoints(self) -> None:
        used: set[str] = set()
        for index, step in enumerate(self.steps):
            name = getattr(step, "endpoint", None)
            if name is not None and name not in self.endpoints:
                remedy = did_you_mean(name, self.endpoints) or "describe it under `endpoints`"
                raise MisfitError(f"steps[{index}].endpoint", f"there is no endpoint {name!r}", remedy)
            used |= {name} if name is not None else set()
        if idle := sorted(self.endpoints.keys() - used):
            raise MisfitError(f"endpoints.{idle[0]}", "no step asks it", "name it in a step, or remove it")
        if "placement" in self.cluster.model_fields_set:
            raise MisfitError("cluster.placement", "a curation has engines and no learners", "remove it")
        if "cluster" in self.model_fields_set and not self.has_checkpoints:
            raise MisfitError(
                "cluster", "no endpoint is a `checkpoint`, so there are no engines", "remove it"
            )


def _check_band(low: float | None, high: float | None) -> None:
    if low is not None and high is not None and low > high:
        raise MisfitError("min", f"{low:g} is above max, {high:g}", "exchange them")


def curation_names() -> list[str]:
    """List the curation recipes that ship with the package."""
    return sorted(path.stem for path in _shipped().glob("*.yaml"))


def load_curation(source: str | Path, base_dir: Path | None = None) -> CurationConfig:
    """Load a curation recipe, its places made absolute.

    Args:
        source: Name of a shipped recipe, or path of a YAML file.
        base_dir: Of a run that curates: what the path, the dataset and plugin files are relative to.

    Raises:
        ConfigError: With every problem found.

    Example:
        load_curation("my_curation.yaml").steps
    """
    path = _find(str(source), base_dir or Path())
    document = read_document(path)
    if not isinstance(document.data, dict):
        raise document.error((), "should hold keys and values", f"see {_shipped()} for an example")
    shipped = path.parent == _shipped()
    document.data.setdefault("base_dir", str(Path.cwd() if shipped else path.absolute().parent))
    if base_dir is not None:
        document.data["base_dir"] = str(base_dir)
    # A base_dir that is no text is refused by the validation.
    folder = Path(str(document.data["base_dir"]))
    try:
        return CurationConfig.model_validate(document.data, context=relative_to(folder))
    except ValidationError as error:
        raise problems_of(error, document, CurationConfig) from None


def _find(source: str, base_dir: Path) -> Path:
    if "/" in source or source.endswith((".yaml", ".yml")):
        return base_dir / Path(source).expanduser()
    if source in curation_names():
        return _shipped() / f"{source}.yaml"
    hint = did_you_mean(source, curation_names()) or (
        f"the recipes are {', '.join(curation_names())}; a file of yours ends in .yaml"
    )
    raise ConfigError([Problem(source, "", "there is no such curation recipe", hint)])


def _shipped() -> Path:
    return Path(str(files("posttrain").joinpath("recipes", "curation")))
