"""JSON knows one kind of number: `0.0` for an integer is the same value, but no index of a Python list."""

from typing import Any

from posttrain.files.strict_json import JsonObject


def whole_numbers(value: Any, schema: JsonObject) -> Any:
    """Return a value with its whole numbers as integers wherever its JSON schema takes no other number."""
    choices = schema.get("enum")
    if isinstance(value, float) and isinstance(choices, list):
        return next((c for c in choices if c == value and not isinstance(c, bool)), value)
    if isinstance(value, float) and value.is_integer() and _takes(schema, "integer"):
        return value if _takes(schema, "number") else int(value)
    for option in _options(schema):
        value = whole_numbers(value, option)
    items, properties = schema.get("items"), schema.get("properties")
    if isinstance(value, list) and isinstance(items, dict):
        return [whole_numbers(item, items) for item in value]
    if isinstance(value, dict) and isinstance(properties, dict):
        within = {key: properties.get(key) for key in value}
        return {k: whole_numbers(v, s) if isinstance(s := within[k], dict) else v for k, v in value.items()}
    return value


def _takes(schema: JsonObject, kind: str) -> bool:
    named = schema.get("type")
    return (
        kind == named
        or (isinstance(named, list) and kind in named)
        or any(_takes(option, kind) for option in _options(schema))
    )


def _options(schema: JsonObject) -> list[JsonObject]:
    listed = [schema.get(key) for key in ("anyOf", "oneOf", "allOf")]
    return [
        option
        for options in listed
        if isinstance(options, list)
        for option in options
        if isinstance(option, dict)
    ]
