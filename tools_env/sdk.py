"""What a tool is, and how to write one: a typed function with `@tool`, or a class with a `spec`."""

import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, overload, runtime_checkable

from PIL import Image

from posttrain.files.strict_json import Json, JsonObject
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


#: What the functions of tools may return; `async` ones return it once they are awaited.
Returned: TypeAlias = str | Image.Image | ToolResult
ToolFunction: TypeAlias = Callable[..., Returned | Awaitable[Returned] | None]


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

    def __call__(self, arguments: Arguments, images: list[ImageRef]) -> ToolResult | Awaitable[ToolResult]:
        """Serve one call.

        Args:
            arguments: Checked against the spec's schema.
            images: Every image of the dialogue so far, in order, earlier results included.

        Raises:
            ToolError: With a message for the model.
            WorldError: If what the tool needs does not work.
        """
        ...


class FunctionTool:
    """A function as a tool, or a method of a session; made by `@tool`.

    Attributes:
        spec: What the model is told.
        deadline_s: Seconds that a call may take; None for the usual.
    """

    def __init__(self, function: ToolFunction, deadline_s: float | None = None):
        parameters = schema_from_hints(function)
        description = inspect.getdoc(function)
        if not description:
            raise TypeError(f"tool {function.__name__} needs a docstring: it is what the model is told")
        self.spec = ToolSpec(function.__name__, description, parameters)
        self.deadline_s = deadline_s
        self._function = function
        self._takes_images = "images" in inspect.signature(function).parameters

    def __get__(self, owner: object, _: type | None = None) -> Any:
        """Be a method where it is asked of an object, so that a session can call its own tools."""
        return self if owner is None else types.MethodType(self._function, owner)

    def __call__(self, arguments: Arguments, images: list[ImageRef]) -> ToolResult | Awaitable[ToolResult]:
        """Call the function; a text or an image that it returns becomes a `ToolResult`."""
        return as_result(self.call_of(arguments, images))

    def call_of(self, arguments: Arguments, images: list[ImageRef], *owner: object) -> Any:
        """Call the function, as a method of its owner if it has one, and return what it returns."""
        extra = {"images": images} if self._takes_images else {}
        return self._function(*owner, **arguments, **extra)


def as_result(returned: Any) -> Any:
    """Make a `ToolResult` of a text or an image, once it is there; leave anything else as it is."""
    return once_there(returned, _as_result)


def once_there(returned: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to what a tool returned, or to what that comes to once it is awaited."""
    return _once_awaited(returned, function) if inspect.isawaitable(returned) else function(returned)


async def _once_awaited(returned: Awaitable[Any], function: Callable[[Any], Any]) -> Any:
    return function(await returned)


def _as_result(returned: Any) -> Any:
    if isinstance(returned, str):
        return ToolResult(returned)
    if isinstance(returned, Image.Image):
        return ToolResult(images=(returned,))
    return returned


@overload
def tool(function: ToolFunction) -> FunctionTool: ...
@overload
def tool(*, deadline_s: float) -> Callable[[ToolFunction], FunctionTool]: ...
def tool(
    function: ToolFunction | None = None, *, deadline_s: float | None = None
) -> FunctionTool | Callable[[ToolFunction], FunctionTool]:
    """Make a tool of a function with type hints and a docstring, or of a method of a `Session`.

    A parameter called `images` is not shown to the model; it receives the dialogue's images.

    Args:
        function: The function, which may be `async`.
        deadline_s: Seconds that a call may take; 10 if absent.

    Raises:
        TypeError: If a parameter's hint has no JSON form, or the docstring is missing.

    Example:
        @tool
        def image_size(img_idx: Annotated[int, "Which image, from 0"], images: list[ImageRef]) -> str:
            "Tell an image's width and height in pixels."
            return str(open_image(images[img_idx].path).size)
    """
    if function is None:
        return partial(FunctionTool, deadline_s=deadline_s)
    return FunctionTool(function)


def schema_from_hints(function: Callable[..., object]) -> JsonObject:
    """Build the JSON schema of a function's parameters (without `self` and `images`) from its type hints.

    Understands `str`, `int`, `float`, `bool`, `dict`, `list[…]`, `Literal[…]`, `… | None`, and
    `Annotated[…, "description"]`. A parameter without a default is required.

    Raises:
        TypeError: Naming the parameter whose hint is missing or has no JSON form.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    properties: JsonObject = {}
    required: list[Json] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in ("self", "images"):
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
