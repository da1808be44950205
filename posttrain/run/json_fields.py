"""Values of JSON that another version or a crash may have written: each is what was asked for, or absent.

Nothing here raises.
"""

import math

from posttrain.files.strict_json import Json, JsonObject


def number(value: object) -> float | None:
    """Return a finite float, or None: null, NaN, infinity, booleans and text are no figures."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def integer(value: object) -> int | None:
    """Return a number without its fraction, or None where `number` does."""
    found = number(value)
    return None if found is None else int(found)


def text(value: object) -> str:
    """Return any value as text, and null as none."""
    return "" if value is None else str(value)


def mapping(value: Json) -> JsonObject:
    """Return a JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def objects(value: Json) -> list[JsonObject]:
    """Return the objects of a list, without whatever else is in it; nothing of what is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def numbers(value: Json) -> dict[str, float]:
    """Return the members of an object that are finite numbers."""
    found = {name: number(item) for name, item in mapping(value).items()}
    return {name: item for name, item in found.items() if item is not None}


def texts(value: Json) -> dict[str, str]:
    """Return the members of an object as text."""
    return {name: text(item) for name, item in mapping(value).items()}
