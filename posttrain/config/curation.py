"""A curation: where rows come from, which models are asked, and the filters that the rows pass in order."""

from importlib.resources import files
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from posttrain.config.base import MisfitError, Name, Natural, Section
from posttrain.config.curation_steps import Step
from posttrain.config.data import DatasetName
from posttrain.config.document import Document, read_document
from posttrain.config.endpoints import EndpointConfig, ModelEntry, ServedConfig
from posttrain.config.errors import ConfigError, Problem
from posttrain.config.filter_step import Share
from posttrain.config.model import ClusterConfig
from posttrain.config.paths import LocalPath, relative_to
from posttrain.config.problems import problems_of
from posttrain.config.sampling_steps import PlayingStep
from posttrain.files.nearest import did_you_mean

#: Why a stage's own task cannot be played for its pass rates, and what to do.
NO_REWARDS = (
    "has no rewards, which say what is solved: give the task one (where a teacher is learned from it is "
    "measured, and not learned), or name an `endpoint` in the step"
)


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
        return any(isinstance(entry, ServedConfig) for entry in self.endpoints.values())

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
            plays = isinstance(step, PlayingStep) and step.plays
            if plays and isinstance(self.endpoints.get(name or ""), EndpointConfig):
                raise MisfitError(
                    f"steps[{index}].endpoint",
                    f"episodes are played in engines of this toolkit, and {name!r} is at an address",
                    "give it a `checkpoint`, or ask for answers by `reward` in place of `task`",
                )
            used |= {name} if name is not None else set()
        if idle := sorted(self.endpoints.keys() - used):
            raise MisfitError(f"endpoints.{idle[0]}", "no step asks it", "name it in a step, or remove it")
        if "placement" in self.cluster.model_fields_set:
            raise MisfitError("cluster.placement", "a curation has engines and no learners", "remove it")
        if "cluster" in self.model_fields_set and not self.has_checkpoints:
            raise MisfitError(
                "cluster", "no endpoint is a `checkpoint`, so there are no engines", "remove it"
            )


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
    return build_curation(document)


def build_curation(document: Document) -> CurationConfig:
    """Build a recipe from its data, which have a `base_dir`.

    Raises:
        ConfigError: With every problem found.
    """
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
