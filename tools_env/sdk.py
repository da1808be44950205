"""What a tool is, and how to write one: a typed function with `@tool`, or a class with a `spec`."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from PIL import Image

from posttrain.files.strict_json import Json, JsonObject
from posttrain.plugins import PluginError, resolve
from posttrain.types import ImageRef, ToolSpec

GROUP = "posttrain.tools"
#: A call's arguments, which fit the tool's schema.
Arguments: TypeAlias = dict[str, Any]
#: A tool's reference, alone or as `{"name": …, "params": {…}}`.
ToolReference: TypeAlias = str | Mapping[str, Any]
_JSON_TYPES: dict[object, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
}


class ToolError(Exception):
    """A call that cannot be served; the model reads the message, so let it say what to do instead."""


@dataclass(frozen=True)
class ToolResult:
    """What a tool gives back: text, images, or both (the images are shown first)."""

    text: str = ""
    images: Sequence[Image.Image] = ()


ToolFunction: TypeAlias = Callable[..., str | Image.Image | ToolResult]


@runtime_checkable
class Tool(Protocol):
    """Anything with a `spec` that can be called with arguments that fit it.

    One tool serves many episodes, from several threads at once: it keeps nothing between calls that
    belongs to one of them.
    """

    @property
    def spec(self) -> ToolSpec:
        """The name, purpose and JSON schema that the model is told."""
        ...

    def __call__(self, arguments: Arguments, images: list[ImageRef]) -> ToolResult:
        """Serve one call.

        Args:
            arguments: Checked against the spec's schema.
            images: Every image of the dialogue so far, in order, earlier results included.

        Raises:
            ToolError: With a message for the model.
        """
        ...


class FunctionTool:
    """A function as a tool; made by `@tool`."""

    def __init__(self, function: ToolFunction):
        parameters = schema_from_hints(function)
        description = inspect.getdoc(function)
        if not description:
            raise TypeError(f"tool {function.__name__} needs a docstring: it is what the model is told")
        self.spec = ToolSpec(function.__name__, description, parameters)
        self._function = function
        self._takes_images = "images" in inspect.signature(function).parameters

    def __call__(self, arguments: Arguments, images: list[ImageRef]) -> ToolResult:
        """Call the function; a text or an image that it returns becomes a `ToolResult`."""
        extra = {"images": images} if self._takes_images else {}
        result = self._function(**arguments, **extra)
        if isinstance(result, str):
            return ToolResult(result)
        if isinstance(result, Image.Image):
            return ToolResult(images=(result,))
        return result


def tool(function: ToolFunction) -> FunctionTool:
    """Make a tool of a function with type hints and a docstring.

    A parameter called `images` is not shown to the model; it receives the dialogue's images.

    Raises:
        TypeError: If a parameter's hint has no JSON form, or the docstring is missing.

    Example:
        @tool
        def image_size(img_idx: Annotated[int, "Which image, from 0"], images: list[ImageRef]) -> str:
            "Tell an image's width and height in pixels."
            return str(open_image(images[img_idx].path).size)
    """
    return FunctionTool(function)


def schema_from_hints(function: Callable[..., object]) -> JsonObject:
    """Build the JSON schema of a function's parameters (without `images`) from its type hints.

    Understands `str`, `int`, `float`, `bool`, `dict`, `list[…]`, `Literal[…]`, `… | None`, and
    `Annotated[…, "description"]`. A parameter without a default is required.

    Raises:
        TypeError: Naming the parameter whose hint is missing or has no JSON form.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    properties: JsonObject = {}
    required: list[Json] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "images":
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"tool {function.__name__}: parameter {name!r} cannot be given by name")
        if name not in hints:
            raise TypeError(f"tool {function.__name__}: parameter {name!r} needs a type hint")
        try:
            properties[name] = _schema(hints[name])
        except TypeError as error:
            raise TypeError(f"tool {function.__name__}: parameter {name!r}: {error}") from None
        if parameter.default is parameter.empty:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(hint: object) -> JsonObject:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        texts = [note for note in arguments[1:] if isinstance(note, str)]
        schema = _schema(arguments[0])
        if texts:
            schema["description"] = texts[0]
        return schema
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(choice) for choice in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if hint is list or origin is list:
        return {"type": "array", "items": _schema(arguments[0])} if arguments else {"type": "array"}
    if hint is type(None):
        return {"type": "null"}
    kind = _JSON_TYPES.get(origin or hint)
    if kind is None:
        raise TypeError(f"{hint} has no JSON form; use str, int, float, bool, dict, list, Literal or None")
    return {"type": kind}


def load_tools(references: Iterable[ToolReference], base_dir: Path | None = None) -> list[Tool]:
    """Load the tools that a task names.

    Args:
        references: `name`, `file.py:attr` or `package.module:attr`; or `{"name": …, "params": {…}}`, whose
            params go to the tool's class.
        base_dir: Where relative files are looked for.

    Raises:
        PluginError: If a reference leads nowhere or to something that is no tool, or params do not fit.
    """
    return [_load(reference, base_dir) for reference in references]


def _load(reference: ToolReference, base_dir: Path | None) -> Tool:
    name = reference if isinstance(reference, str) else reference["name"]
    params = {} if isinstance(reference, str) else reference.get("params") or {}
    found = resolve(name, GROUP, object, base_dir)
    if isinstance(found, type):
        try:
            found = found(**params)
        except (TypeError, ValueError) as error:
            raise PluginError(f"tool {name}: params {dict(params)} do not fit: {error}") from error
    elif params:
        raise PluginError(f"tool {name} is not a class, so it takes no params; got {sorted(params)}")
    if not isinstance(found, Tool) or not isinstance(found.spec, ToolSpec):
        raise PluginError(f"tool {name} is a {type(found).__name__}; decorate a function with @tool")
    return found
