"""Do a call's arguments fit the tool's schema? The schema may be a stranger's, the arguments a model's."""

from typing import Any

import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend
from referencing import Registry

from posttrain.files.strict_json import JsonObject

#: Seconds that one pattern may take on one text.
PATTERN_S = 0.2


def _pattern(_: Any, pattern: str, text: Any, __: Any) -> Any:
    """Check `pattern` by an engine that can be told to stop."""
    if isinstance(text, str) and not regex.search(pattern, text, timeout=PATTERN_S):
        yield ValidationError(f"{text!r} does not match {pattern!r}")


_Bounded = extend(Draft202012Validator, {"pattern": _pattern})


def misfit(schema: JsonObject, arguments: Any) -> tuple[str, str] | None:
    """Return where some arguments do not fit a schema, and why; None if they do.

    Args:
        schema: A JSON schema (2020-12); references lead nowhere but into itself.
        arguments: Any JSON value.

    Raises:
        Exception: Whatever a schema leads to that is none: one that refers to itself without end, or to what
            is not there; a pattern that takes too long (TimeoutError) or is none.

    Example:
        misfit({"type": "object", "required": ["a"]}, {})  # ("", "'a' is a required property")
    """
    wrong = best_match(_Bounded(schema, registry=Registry()).iter_errors(arguments))
    if wrong is None:
        return None
    return "".join(f"[{key!r}]" for key in wrong.absolute_path), wrong.message[:400]
