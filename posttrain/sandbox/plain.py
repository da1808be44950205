"""Values that cross from one process to another as JSON: plain data only, so nothing brings code along.

JSON's own values stand for themselves; a tuple, set, dict, large integer, date … is an object of one key that
names its kind. Anything else stays where it is, and whoever writes says what stands for it.
"""

import builtins
import collections
import importlib
import math
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

#: Writes the JSON that stands for what is no plain data; `decode` reads `{"object": …}` with its counterpart.
Elsewhere: TypeAlias = Callable[[object], object]

_PLAIN_BITS = 900
_SEQUENCES = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}
_MAPPINGS = {"dict": dict, "OrderedDict": collections.OrderedDict, "Counter": collections.Counter}
_VIEWS = {"dict_keys": type({}.keys()), "dict_values": type({}.values()), "dict_items": type({}.items())}
#: Classes whose subclasses hold plain data too.
#: Classes whose subclasses hold plain data too.
CONTAINERS = (list, tuple, dict, set, frozenset, collections.deque)
_LIBRARY_CONTAINERS = {*CONTAINERS, *_MAPPINGS.values(), collections.defaultdict}
#: Numbers and dates of the standard library, with their modules, which are imported where one is met.
_LIBRARY_VALUES = {"Decimal": "decimal", "Fraction": "fractions"} | dict.fromkeys(
    ("datetime", "date", "time", "timedelta"), "datetime"
)
#: Functions that compute and no more; with the classes they may be handed over by name.
_FUNCTIONS = "abs all any bin chr divmod format hex len max min oct ord pow repr round sorted sum".split()
_BY_NAME = {
    name: found
    for name, found in vars(builtins).items()
    if name in _FUNCTIONS or (isinstance(found, type) and not issubclass(found, BaseException))
} | {"NoneType": type(None)}
_NAMES = {found: name for name, found in _BY_NAME.items()}


def encode(value: Any, elsewhere: Elsewhere) -> object:
    """Write the JSON form of a value.

    Subclasses count as the plain type that they extend, so that no `__eq__` of theirs is ever asked; but a
    container with methods of its own is no plain data.

    Args:
        value: Anything.
        elsewhere: Told of what is not plain data; returns what is written in its place.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int.__index__(value)
        return value if value.bit_length() < _PLAIN_BITS else {"integer": hex(value)}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        value = float.__float__(value)
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, CONTAINERS):
        return elsewhere(value) if has_methods(type(value)) else encode_container(value, elsewhere)
    return _encode_leaf(value, elsewhere)


def encode_container(value: Any, elsewhere: Elsewhere) -> object:
    """Write what a list, tuple, dict, set or deque holds, whatever else its class can do."""

    def items(of: Any) -> list[object]:
        return [encode(item, elsewhere) for item in of]

    if isinstance(value, list):
        return items(list.__iter__(value))
    if isinstance(value, tuple):
        held = items(tuple.__iter__(value))
        fields = _fields_of(type(value))
        return {"named": [type(value).__name__, [*fields], held]} if fields else {"tuple": held}
    if isinstance(value, dict):
        pairs = [items(pair) for pair in dict.items(value)]
        if isinstance(value, collections.defaultdict):
            return {"defaultdict": [encode(value.default_factory, elsewhere), pairs]}
        kind = next((name for name, form in reversed(_MAPPINGS.items()) if isinstance(value, form)), "dict")
        return {kind: pairs}
    kind = next(name for name, form in _SEQUENCES.items() if isinstance(value, form))
    held = items(_SEQUENCES[kind].__iter__(value))
    return {"deque": [held, value.maxlen]} if isinstance(value, collections.deque) else {kind: held}


def has_methods(kind: type) -> bool:
    """Tell whether a container's class adds anything public to what Python's own has."""
    if kind in _LIBRARY_CONTAINERS:
        return False
    own = set(_fields_of(kind))
    added = [base for base in kind.__mro__ if base not in _LIBRARY_CONTAINERS and base is not object]
    return any(not name.startswith("_") and name not in own for base in added for name in vars(base))


def _fields_of(kind: type) -> tuple[str, ...]:
    fields = getattr(kind, "_fields", ())
    named = isinstance(fields, tuple) and all(type(name) is str and name.isidentifier() for name in fields)
    return fields if issubclass(kind, tuple) and named else ()


def _encode_leaf(value: Any, elsewhere: Elsewhere) -> object:
    if isinstance(value, complex):
        return {"complex": [repr(value.real), repr(value.imag)]}
    if isinstance(value, bytes | bytearray):
        kind = "bytes" if isinstance(value, bytes) else "bytearray"
        return {kind: bytes(memoryview(value)).hex()}
    if type(value) is range:
        return {"range": [encode(part, elsewhere) for part in (value.start, value.stop, value.step)]}
    if type(value) is slice:
        return {"slice": [encode(part, elsewhere) for part in (value.start, value.stop, value.step)]}
    for kind, form in _VIEWS.items():
        if type(value) is form:
            return {kind: [encode(item, elsewhere) for item in value]}
    if (written := _encode_library_value(value)) is not None:
        return written
    try:
        named = _NAMES.get(value) if isinstance(value, type | type(len)) else None
    except TypeError:  # a class whose metaclass makes it unhashable
        named = None
    return {"builtin": named} if named else elsewhere(value)


def _encode_library_value(value: Any) -> object:
    """Write a number or date of the standard library; None where it is something else."""
    kind = type(value).__name__
    module = sys.modules.get(_LIBRARY_VALUES.get(kind, ""))
    if module is None or type(value) is not getattr(module, kind):
        return None
    if kind == "Decimal":
        return {kind: str(value)}
    if kind == "Fraction":
        return {kind: [hex(value.numerator), hex(value.denominator)]}
    if kind == "timedelta":
        return {kind: [value.days, value.seconds, value.microseconds]}
    return {kind: value.isoformat()}


def decode(value: object, fetch: Callable[[Any], object]) -> Any:
    """Read the value that a JSON form stands for.

    Args:
        value: What `encode` wrote, or anything else that JSON can hold.
        fetch: Finds what stands under "object".

    Raises:
        ValueError, TypeError, LookupError: If `encode` cannot have written it.
    """
    if isinstance(value, list):
        return [decode(item, fetch) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("an encoded object has one key")
    (kind, held), *_ = value.items()
    if kind == "object":
        return fetch(held)
    if kind in _MAPPINGS or kind == "defaultdict":
        factory, pairs = held if kind == "defaultdict" else (None, held)
        read = {decode(key, fetch): decode(item, fetch) for key, item in pairs}
        if kind in _MAPPINGS:
            return _MAPPINGS[kind](read)
        return collections.defaultdict(decode(factory, fetch), read)
    if kind in _READERS:
        return _READERS[kind](held)
    if kind in ("deque", "named", "range", "slice", "iterator", *_SEQUENCES, *_VIEWS):
        return _build(kind, decode(held, fetch))
    return _decode_library_value(kind, held)


_READERS: dict[str, Callable[[Any], object]] = {
    "integer": lambda held: int(held, 16),
    "float": float,
    "complex": lambda held: complex(*(float(part) for part in held)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "builtin": _BY_NAME.__getitem__,
}


def _build(kind: str, held: Any) -> object:
    """Make a value of its decoded parts."""
    if kind == "deque":
        return collections.deque(*held)
    if kind == "named":
        name, fields, items = held
        return collections.namedtuple(name, fields, rename=True)(*items)
    if kind == "iterator":
        return iter(held)
    if kind == "range":
        return range(*held)
    if kind == "slice":
        return slice(*held)
    if kind == "dict_keys":
        return dict.fromkeys(held).keys()
    if kind == "dict_values":
        return dict(enumerate(held)).values()
    if kind == "dict_items":
        return dict(held).items()
    return _SEQUENCES[kind](held)


def _decode_library_value(kind: str, held: Any) -> object:
    if kind not in _LIBRARY_VALUES:
        raise ValueError(f"unknown kind {str(kind)[:20]!r}")
    make = getattr(importlib.import_module(_LIBRARY_VALUES[kind]), kind)
    if kind == "Fraction":
        return make(*(int(part, 16) for part in held))
    if kind == "Decimal":
        return make(held)
    return make(*held) if kind == "timedelta" else make.fromisoformat(held)
