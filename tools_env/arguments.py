"""Do a call's arguments fit the tool's schema? The schema may be a stranger's, the arguments a model's."""

import json
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend
from referencing import Registry

from posttrain.files.strict_json import JsonObject

#: Seconds that a check may take, and one pattern on one text.
CHECK_S, PATTERN_S = 5.0, 0.2

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]

#: When the check that is under way has to end, by time.monotonic().
_end: ContextVar[float] = ContextVar("end of the check")


def _matches(pattern: str, text: str) -> bool:
    """Search for a pattern by an engine that can be told to stop."""
    return regex.search(pattern, text, timeout=PATTERN_S) is not None


def _pattern(_: Any, pattern: str, text: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(text, str) and not _matches(pattern, text):
        yield ValidationError(f"{text!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, by_pattern: Any, value: Any, _: Any) -> Iterator[ValidationError]:
    if isinstance(value, dict):
        for pattern, below in by_pattern.items():
            for name in (name for name in value if _matches(pattern, name)):
                yield from validator.descend(value[name], below, path=name, schema_path=pattern)


def _additional_properties(validator: Any, below: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    further = [name for name in value if name not in named and not any(_matches(p, name) for p in patterns)]
    if isinstance(below, dict):
        for name in further:
            yield from validator.descend(value[name], below, path=name)
    elif not below and further:
        yield ValidationError(f"Additional properties are not allowed: {', '.join(map(repr, further))}")


def _in_time(keyword: Keyword) -> Keyword:
    """Have a keyword look at the clock: whatever a schema repeats without end, it comes by here."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if time.monotonic() > _end.get():
            raise TimeoutError("checking arguments by it takes too long")
        yield from keyword(validator, value, instance, schema) or ()

    return check


_OURS: dict[str, Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}
_Bounded = extend(
    Draft202012Validator,
    {name: _in_time(keyword) for name, keyword in {**Draft202012Validator.VALIDATORS, **_OURS}.items()},
)


def misfit(schema: JsonObject, arguments: Any, seconds: float = CHECK_S) -> tuple[str, str] | None:
    """Return where some arguments do not fit a schema, and why; None if they do.

    Args:
        schema: A JSON schema (2020-12); references lead nowhere but into itself.
        arguments: Any JSON value.
        seconds: After which the check ends: no thread is left that goes on with it.

    Raises:
        Exception: Whatever a schema leads to that is none: one that refers to itself without end, or to what
            is not there; one that takes too long (TimeoutError); a pattern that is none.

    Example:
        misfit({"type": "object", "required": ["a"]}, {})  # ("", "'a' is a required property")
    """
    if '"unevaluatedProperties"' in (text := json.dumps(schema)) and '"patternProperties"' in text:
        # jsonschema would search by the patterns itself, and nothing could stop that.
        raise ValueError("unevaluatedProperties beside patternProperties are not understood here")
    token = _end.set(time.monotonic() + seconds)
    try:
        wrong = best_match(_Bounded(schema, registry=Registry()).iter_errors(arguments))
    finally:
        _end.reset(token)
    if wrong is None:
        return None
    return "".join(f"[{key!r}]" for key in wrong.absolute_path), wrong.message[:400]
