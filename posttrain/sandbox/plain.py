"""Values that cross from one process to another as JSON: plain data only, so nothing brings code along.

JSON's own values stand for themselves; a tuple, set, dict, large integer … is an object of one key that
names its kind. Anything else stays where it is and is passed by number.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

#: How much of an iterator is read.
MAX_ITEMS = 100_000
_PLAIN_BITS = 900
_SEQUENCES = {"tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}


def encode(value: Any, keep: Callable[[object], int]) -> object:
    """Write the JSON form of a value.

    Subclasses count as the plain type that they extend, so that no `__eq__` of theirs is ever asked.

    Args:
        value: Anything.
        keep: Told of what is not plain data; returns its number.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int.__index__(value)
        return value if value.bit_length() < _PLAIN_BITS else {"integer": hex(value)}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float | complex | bytes | bytearray):
        return _encode_leaf(value)
    if isinstance(value, list):
        return [encode(item, keep) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[encode(key, keep), encode(item, keep)] for key, item in dict.items(value)]}
    if isinstance(value, tuple):
        return {"tuple": [encode(item, keep) for item in tuple.__iter__(value)]}
    if isinstance(value, set):
        return {"set": [encode(item, keep) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"frozenset": [encode(item, keep) for item in frozenset.__iter__(value)]}
    if isinstance(value, range) or hasattr(value, "__next__"):
        return {"iterator": [encode(item, keep) for item in itertools.islice(value, MAX_ITEMS)]}
    return {"object": keep(value)}


def decode(value: object, fetch: Callable[[int], object]) -> Any:
    """Read the value that a JSON form stands for.

    Args:
        value: What `encode` wrote, or anything else that JSON can hold.
        fetch: Finds what was passed by number.

    Raises:
        ValueError, TypeError: If `encode` cannot have written it.
    """
    if isinstance(value, list):
        return [decode(item, fetch) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("an encoded object has one key")
    (kind, held), *_ = value.items()
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decode(held, fetch))
    if kind == "dict":
        return {decode(key, fetch): decode(item, fetch) for key, item in held}
    if kind == "integer":
        return int(held, 16)
    if kind == "float":
        return float(held)
    if kind == "complex":
        return complex(*(float(part) for part in held))
    if kind in ("bytes", "bytearray"):
        return bytes.fromhex(held)
    if kind == "object":
        return fetch(held)
    raise ValueError(f"unknown kind {kind[:20]!r}")


def _encode_leaf(value: float | complex | bytes | bytearray) -> object:
    if isinstance(value, float):
        value = float.__float__(value)
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, complex):
        return {"complex": [repr(value.real), repr(value.imag)]}
    return {"bytes": bytes(value).hex()}
