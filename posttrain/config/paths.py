"""Types of keys that hold paths: relative ones are completed where a file is loaded, by the key's type.

A section declares `path: LocalPath` or `name_or_path: ModelPath`; whoever loads a file validates its data
with `context=relative_to(folder)`. Without a context a path stays as it is, so that a loaded config can be
validated again.
"""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ValidationInfo

from posttrain.config.hub import hub_dataset, is_address

_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
_FOLDER = "folder of relative paths"


def relative_to(folder: Path) -> dict[str, object]:
    """Return the context of a validation that completes relative paths by a folder."""
    return {_FOLDER: folder}


def missing_variables(path: str | None) -> list[str]:
    """Return the environment variables that a path names, `${NAME}/train.jsonl`, and that are not set."""
    return [name for name in _VARIABLE.findall(path or "") if not os.environ.get(name)]


def _folder(info: ValidationInfo) -> Path | None:
    return info.context.get(_FOLDER) if info.context else None


def _complete(value: object, info: ValidationInfo) -> object:
    """Make a path absolute, its variables replaced; one whose variable is not set stays as it is."""
    folder = _folder(info)
    if folder is None or not isinstance(value, str) or not value or missing_variables(value):
        return value
    path = Path(_VARIABLE.sub(lambda found: os.environ[found[1]], value)).expanduser()
    return str(_without_climbing(folder.absolute() / path))


def _without_climbing(path: Path) -> Path:
    """Remove `..` from an absolute path; links after it stay: their names say what they are."""
    parts = path.parts
    last = max((at for at, part in enumerate(parts) if part == ".."), default=-1)
    return Path(*parts[: last + 1]).resolve().joinpath(*parts[last + 1 :]) if last >= 0 else path


def _complete_model(value: object, info: ValidationInfo) -> object:
    """Make the path of a model's directory absolute; the name of a model on the hub stays as it is."""
    folder = _folder(info)
    if folder is None or not isinstance(value, str):
        return value
    path = folder / Path(value).expanduser()
    return str(path.absolute()) if path.is_dir() or value.startswith((".", "/", "~")) else value


def _complete_data(value: object, info: ValidationInfo) -> object:
    """Make a path absolute; what is not there is looked for in the Hub's cache.

    An address of the Hub that the cache does not have stays one, so that an error can say how to fetch it.
    """
    path = _complete(value, info)
    if _folder(info) is None or not isinstance(value, str) or not isinstance(path, str):
        return path
    if not is_address(value) and (os.path.exists(path) or missing_variables(value)):  # noqa: PTH110
        return path
    dataset = hub_dataset(value)
    cached = None if dataset is None else dataset.cached
    if cached is not None:
        return str(cached)
    return str(dataset) if dataset is not None and is_address(value) else path


#: A file or folder on this machine; may hold environment variables.
LocalPath = Annotated[str, BeforeValidator(_complete)]
#: The same, or the name of a dataset of the Hub that its cache has.
DataPath = Annotated[str, BeforeValidator(_complete_data)]
#: The directory of a model on this machine, or the name of one on the hub.
ModelPath = Annotated[str, BeforeValidator(_complete_model)]
