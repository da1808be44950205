"""From a recipe's name or a YAML file, with overrides, to a checked config."""

import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from posttrain.config.comparison import expand
from posttrain.config.data import DatasetConfig
from posttrain.config.document import Document, Key, merge, parse_document, read_document
from posttrain.config.errors import ConfigError, Problem
from posttrain.config.hub import hub_dataset
from posttrain.config.paths import missing_variables, relative_to
from posttrain.config.problems import problems_of
from posttrain.config.run import RunConfig
from posttrain.files.nearest import did_you_mean

MAX_BASES = 8
COMMAND_LINE = "command line"


def load_run(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a run.

    Args:
        source: Name of a shipped recipe, or path of a YAML file. A file may begin with `base:`, another
            recipe or file whose values it changes.
        overrides: `key=value` pairs; keys are dotted paths, list entries are named or numbered, values
            are YAML: `stages.rl.max_steps=20`.

    Raises:
        ConfigError: With every problem found.

    Example:
        load_run("quickstart", ["seed=1", "stages.rl.prompts_per_step=32"])
    """
    return build_run(read_run(source, overrides))


def read_run(source: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Read the data of a run without checking them, with the place of every key; see `load_run`.

    A stage that varies settings is replaced by its cells (see `comparison`).
    """
    path = _find_run(str(source), Path())
    document = _with_bases(path, ())
    for override in overrides:
        document = merge(document, _override(override))
    document.label = str(path)
    is_recipe = path.parent == _package_folder("posttrain", "recipes")
    document.data.setdefault("base_dir", str(Path.cwd() if is_recipe else path.absolute().parent))
    return expand(document)


def build_run(document: Document) -> RunConfig:
    """Check a run's data.

    Raises:
        ConfigError: With every problem found.
    """
    # A base_dir that is no text is refused by the validation.
    folder = Path(str(document.data.get("base_dir", ".")))
    try:
        return RunConfig.model_validate(document.data, context=relative_to(folder))
    except ValidationError as error:
        raise problems_of(error, document, RunConfig) from None


def load_dataset_config(name_or_path: str, base_dir: Path | str | None = None) -> DatasetConfig:
    """Load a dataset's YAML, with its `source.path` made absolute.

    Args:
        name_or_path: Name of a file in `<base_dir>/datasets_cfg/` or among the shipped ones, or a path
            that ends in .yaml, relative to `base_dir`.
        base_dir: The run's `base_dir`; the working directory if None.

    Raises:
        ConfigError: If there is no such dataset or its file has problems.
    """
    path = _find_dataset(name_or_path, Path(base_dir or "."))
    document = _mapping(read_document(path))
    try:
        return DatasetConfig.model_validate(document.data, context=relative_to(path.parent))
    except ValidationError as error:
        raise problems_of(error, document, DatasetConfig) from None


def missing_variable(dataset: DatasetConfig) -> str | None:
    """Return an environment variable that a dataset's paths need and that is not set, if any."""
    source = dataset.source
    return next(iter([*missing_variables(source.path), *missing_variables(source.images)]), None)


def recipe_names() -> list[str]:
    """List the recipes that ship with the package."""
    return sorted(path.stem for path in _package_folder("posttrain", "recipes").glob("*.yaml"))


def dataset_names() -> list[str]:
    """List the datasets that ship with the package."""
    return sorted(path.stem for path in _package_folder("datasets_cfg").glob("*.yaml"))


def _find_run(source: str, base_dir: Path) -> Path:
    """Find the file behind a recipe's name or a path."""
    if "/" in source or source.endswith((".yaml", ".yml")):
        return base_dir / Path(source).expanduser()
    if source in recipe_names():
        return _package_folder("posttrain", "recipes") / f"{source}.yaml"
    known = ", ".join(recipe_names())
    hint = did_you_mean(source, recipe_names()) or f"the recipes are {known}; a file of yours ends in .yaml"
    raise ConfigError([Problem(source, "", "there is no such recipe", hint)])


def _find_dataset(name_or_path: str, base_dir: Path) -> Path:
    """Find the file behind a dataset's name or path."""
    if name_or_path.endswith((".yaml", ".yml")):
        return base_dir / Path(name_or_path).expanduser()
    own = base_dir / "datasets_cfg" / f"{name_or_path}.yaml"
    shipped = _package_folder("datasets_cfg") / f"{name_or_path}.yaml"
    plain = re.fullmatch(r"[\w.-]{1,200}", name_or_path) is not None
    for path in (own, shipped):
        if plain and path.is_file():
            return path
    names = dataset_names() + [path.stem for path in (base_dir / "datasets_cfg").glob("*.yaml")]
    reason = "there is no such dataset"
    beside = [Path(f"{name_or_path}.yaml"), Path("datasets_cfg", f"{name_or_path}.yaml")]
    written = next((str(path) for path in beside if os.path.isfile(base_dir / path)), "")  # noqa: PTH113
    if os.path.exists(base_dir / name_or_path):  # noqa: PTH110 (a path that is too long is just none)
        reason = "it may hold rows, but a dataset is a YAML file that says which and in what form"
        hint = f"write one with `source: {{path: {name_or_path}}}`; `posttrain data inspect --help` shows it"
    elif written:
        hint = f"did you mean {written}?"
    elif "/" in name_or_path:
        hint = _hub_hint(name_or_path, base_dir / "datasets_cfg")
    else:
        choices = f"write {own}, or choose among {', '.join(sorted(set(names)))}"
        hint = did_you_mean(name_or_path, names) or choices
    raise ConfigError([Problem(name_or_path, "", reason, hint)])


def _hub_hint(written: str, folder: Path) -> str:
    """Return what to do where a dataset is called by a name with slashes: one of the Hub, or a wrong path."""
    dataset = hub_dataset(written)
    if dataset is None or "/" not in dataset.name:
        return "the path of a dataset's YAML ends in .yaml"
    name = re.sub(r"[^\w.-]|^[^A-Za-z0-9]+", "", dataset.name.rpartition("/")[2], flags=re.ASCII)[:64]
    fetch = "" if dataset.cached else f"fetch it, as nothing is fetched by itself: {dataset.fetching}; then "
    return (
        f"{fetch}write {folder / name}.yaml with name: {name}, description, licence,"
        f" source: {{path: {written}}} and the format of its rows, and call it {name}"
    )


def _package_folder(package: str, *parts: str) -> Path:
    return Path(str(files(package).joinpath(*parts)))


def _with_bases(path: Path, seen: tuple[Path, ...]) -> Document:
    """Read a file, and lay it over the file that its `base:` names, and so on."""
    document = _mapping(read_document(path))
    base = document.data.pop("base", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise document.error(("base",), f"should name one recipe or file, not {base!r}")
    chain = (*seen, path.resolve())
    try:
        found = _find_run(base, path.parent)
    except ConfigError as error:
        problem = error.problems[0]
        raise document.error(("base",), f"{problem.reason} as {base!r}", problem.remedy) from None
    if found.resolve() in chain or len(chain) > MAX_BASES:
        raise document.error(("base",), "the files derive from each other in a circle or too deeply")
    return merge(_with_bases(found, chain), document)


def _mapping(document: Document) -> Document:
    if not isinstance(document.data, dict):
        raise document.error((), "should hold keys and values", "see `posttrain run --help` for an example")
    return document


def _override(text: str) -> Document:
    """Read an override, `stages.rl.max_steps=20`, as a document of one value."""
    dotted, equals, value = text.partition("=")
    key: Key = tuple(part for part in re.split(r"[.\[\]]+", dotted.strip()) if part)
    document = Document(None, COMMAND_LINE)
    if not equals or not key:
        raise document.error(
            (text,), "an override is written key=value", "for example stages.rl.max_steps=20"
        )
    document.data = parse_document(value, COMMAND_LINE).data
    for length in range(len(key), 0, -1):
        document.places[key[:length]] = COMMAND_LINE
        document.data = {key[length - 1]: document.data}
    return document
