"""The parameters that a reward's function takes, as plain data, so that who cannot load it knows them too."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypedDict, get_args, get_origin, get_type_hints

from posttrain.files.nearest import nearest


class Parameter(TypedDict):
    """One parameter beside the episode.

    Attributes:
        name: How it is named; "**" stands for any name.
        required: Whether it has no default.
        choices: The values that it may have; None for any.
    """

    name: str
    required: bool
    choices: list[object] | None


def parameters_of(function: Callable[..., object]) -> list[Parameter]:
    """List what a function takes beside its first argument."""
    try:
        hints = get_type_hints(function)
    except Exception:  # annotations that only a type checker can read
        hints = {}
    found: list[Parameter] = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            continue
        anything = parameter.kind is parameter.VAR_KEYWORD
        hint = hints.get(parameter.name)
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        found.append(
            {
                "name": "**" if anything else parameter.name,
                "required": not anything and parameter.default is parameter.empty,
                "choices": [*choices] if choices and all(isinstance(c, str | int) for c in choices) else None,
            }
        )
    return found


def takes_budget(known: Sequence[Parameter]) -> bool:
    """Tell whether what a reward asks for is counted against a budget of judges."""
    return any(parameter["name"] == "budget" for parameter in known)


def parameter_fault(known: Sequence[Parameter], params: Mapping[str, object], complete: bool = True) -> str:
    """Return why some params do not fit, naming the parameter and the nearest one; "" if they do.

    Args:
        known: What is taken.
        params: What is given.
        complete: Whether nothing more will be given.
    """
    by_name = {parameter["name"]: parameter for parameter in known}
    takes = f"(it takes: {', '.join(by_name) or 'none'})"
    for name, value in params.items():
        if name not in by_name:
            if "**" in by_name:
                continue
            near = nearest(name, by_name)
            hint = f"; did you mean {near!r}?" if near else ""
            return f"params: there is no {name!r}{hint} {takes}"
        choices = by_name[name]["choices"]
        if choices is not None and value not in choices:
            return f"params: {name}: {value!r} is none of {', '.join(map(str, choices))}"
    missing = [name for name, parameter in by_name.items() if parameter["required"] and name not in params]
    return f"params: {missing[0]!r} is missing {takes}" if complete and missing else ""
