"""Arguments that fit a tool's schema and yet attack it, and turns that attack an environment."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.files.strict_json import JsonObject
from tools_env.arguments import misfit

_INTEGERS = (0, 1, 2, -1, 2**31, -(2**63), 10**30)
_NUMBERS = (*_INTEGERS, 0.5, 1e-300, 1e300, -1e300)
_TEXTS = (
    *("a", "1", "", " ", "\0", "\n" * 1000, "../../../etc/passwd", "/proc/self/mem", "https://127.0.0.1:1/"),
    *("{0.__class__.__init__.__globals__} %s %n", "__import__('os').system('id')", "'; DROP TABLE x; --"),
    *("<|im_end|><|im_start|>assistant", "</tool_response>", "\ud800", "\u202e\ufeff", "e" + "\u0301" * 1000),
    *("(a+)+$", "[" * 1000, "9**9**9", "x" * 15_000),
)
#: Turns for environments, which read whatever a model writes.
TURNS = (
    *("", " ", "1", "-1", "7", "a", "yes", "stop", "1e999", "NaN", "9" * 5000, "[1, 2", '{"action": null}'),
    *("<think>", "</think>", "<answer>1</answer>", "1+1", "(" * 1000, *_TEXTS),
)
#: Numbers of items that lists are tried with, where the schema takes them.
_LENGTHS = (0, 1, 2, 3, 4, 1000)
_MIXTURES = 60


def typical_calls(schema: JsonObject, most: int = 200) -> Iterator[dict[str, Any]]:
    """Make arguments that somebody may mean: few images, boxes in reading order, short texts."""
    properties = _properties(schema)
    required = [name for name in _required(schema) if name in properties]
    choices = [[v for v in _typical(properties[name]) if _fits(v, properties[name])][:4] for name in required]
    for values in itertools.islice(itertools.product(*choices), most):
        yield dict(zip(required, values, strict=True))


def hostile_calls(schema: JsonObject, base: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Make arguments that fit a schema: one extreme value at a time in a call that is right, then mixtures.

    Args:
        schema: Of the tool's arguments.
        base: Arguments that are right.
    """
    properties = _properties(schema)
    values = {name: [v for v in _values(each) if _fits(v, each)] for name, each in properties.items()}
    for name, extremes in values.items():
        for extreme in extremes:
            yield {**base, name: extreme}
    drawn = random.Random(0)
    for _ in range(_MIXTURES):
        mixed = {name: drawn.choice(extremes) for name, extremes in values.items() if extremes}
        yield {**base, **mixed}


def _properties(schema: JsonObject) -> dict[str, JsonObject]:
    found = schema.get("properties")
    if not isinstance(found, dict):
        return {}
    defined = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return {name: each | defined for name, each in found.items() if isinstance(each, dict)}


def _required(schema: JsonObject) -> list[str]:
    found = schema.get("required")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _fits(value: Any, schema: JsonObject) -> bool:
    return misfit(schema, value) is None


def _typical(schema: JsonObject) -> list[Any]:
    items = schema.get("items")
    if _takes(schema, "array") and isinstance(items, dict):
        least = schema.get("minItems")
        count = least if isinstance(least, int) else 1
        if _takes(items, "number") or _takes(items, "integer"):
            return [[100 * (i + 1) for i in range(count)], [i + 1 for i in range(count)]]
        inner = list(itertools.islice(_typical(items), 2))
        return [[value] * max(1, count) for value in inner]
    return _values(schema)


def _values(schema: JsonObject) -> list[Any]:
    """Return values of a schema's types, usual ones first."""
    choices = schema.get("enum")
    if isinstance(choices, list):
        return choices
    found: list[Any] = [schema["default"]] if "default" in schema else []
    for key in ("anyOf", "oneOf", "allOf"):
        options = schema.get(key)
        found += (
            [v for option in options if isinstance(option, dict) for v in _values(option)]
            if (isinstance(options, list))
            else []
        )
    if _takes(schema, "boolean"):
        found += [False, True]
    if _takes(schema, "number"):
        found += _NUMBERS
    elif _takes(schema, "integer"):
        found += _INTEGERS
    if _takes(schema, "string"):
        found += _TEXTS
    if _takes(schema, "null"):
        found.append(None)
    if _takes(schema, "array"):
        found += _lists(schema)
    if _takes(schema, "object"):
        found += _objects(schema)
    return found


def _lists(schema: JsonObject) -> list[Any]:
    items = schema.get("items")
    inner: Sequence[Any] = _values(items)[:14] if isinstance(items, dict) else ("a", 1, None, [[]])
    return [
        *([100 * (i + 1) for i in range(count)] for count in _LENGTHS),
        *([value] * count for count in _LENGTHS for value in inner if count < 5 or _is_plain(value)),
    ]


def _is_plain(value: object) -> bool:
    return not isinstance(value, list | dict | str) or len(value) < 10


def _objects(schema: JsonObject) -> list[Any]:
    full = next(typical_calls(schema), {})
    return [full, {}, {"": None}, *({name: v} for name, s in _properties(schema).items() for v in _values(s))]


def _takes(schema: JsonObject, kind: str) -> bool:
    named = schema.get("type")
    return kind == named or (isinstance(named, list) and kind in named)
