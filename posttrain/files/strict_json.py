"""JSON from strangers: what a model wrote, or a dataset's row.

Python's reader takes more than JSON allows (NaN, keys that appear twice, half of a surrogate pair) and
gives up in its own way on deep nesting. Each of those breaks something later; here each is one kind of
error with a reason that a person or a model can read.
"""

import json
import math
from typing import Any, NoReturn, TypeAlias

MAX_DEPTH = 64
#: About what a float can hold, so that arithmetic on integers cannot overflow later.
MAX_DIGITS = 300

#: Any value that JSON can hold, and the most common one.
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = dict[str, Json]


class JsonError(ValueError):
    """Text that is not strict JSON; the message says what is wrong with it."""


def parse_json(text: str) -> Any:
    """Read strict JSON.

    Raises:
        JsonError: On malformed text, NaN or Infinity, numbers too large for a float, a key that appears
            twice, nesting deeper than 64 levels, or unpaired surrogates.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_not_a_number,
            parse_float=_finite,
            parse_int=_integer,
        )
    except RecursionError:
        raise JsonError(f"nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} at character {error.pos}") from None
    _check(value)
    return value


def _unique(pairs: list[tuple[str, Json]]) -> JsonObject:
    result: JsonObject = {}
    for key, value in pairs:
        if key in result:
            raise JsonError(f"the key {key[:80]!r} appears twice")
        result[key] = value
    return result


def _not_a_number(constant: str) -> NoReturn:
    raise JsonError(f"{constant} is not a number in JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonError(f"the number {digits[:40]}… is too large")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonError(f"the number {digits[:40]} is too large")
    return value


def _check(value: Json) -> None:
    """Check the depth and the texts of a whole value, without recursion."""
    level: list[Json] = [value]
    depth = 0
    while level:
        if depth > MAX_DEPTH:
            raise JsonError(f"nested deeper than {MAX_DEPTH} levels")
        below: list[Json] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, dict):
                below.extend(item.keys())
                below.extend(item.values())
        level, depth = below, depth + 1


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise JsonError("a text holds half of a surrogate pair, which is no character") from None
