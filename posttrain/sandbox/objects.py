"""The answer's process: its objects stay here under numbers, and are used as its tests ask from outside.

Nothing of the tests is ever here: a request names an operation, an object's number and plain arguments.
"""

import builtins
import copy
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.sandbox import frames, plain
from posttrain.sandbox.program import describe, load_functions

_FOR_EVER = float("inf")
#: What may be asked of an object, with the arguments that follow it.
OPERATIONS: dict[str, Callable[..., object]] = {
    **{name: getattr(builtins, name) for name in "len iter reversed str repr format bool".split()},
    **{name: getattr(builtins, name) for name in "int float round divmod abs pow".split()},
    **{
        name: getattr(operator, name)
        for name in "contains getitem setitem delitem lt le gt ge neg pos".split()
    },
    **{
        name: getattr(operator, name)
        for name in "add sub mul matmul truediv floordiv mod and_ or_ xor".split()
    },
    **{name: getattr(operator, name) for name in "lshift rshift invert".split()},
    "attribute": getattr,
    "set": setattr,
    "delete": delattr,
    "call": lambda of, *given, **named: of(*given, **named),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "isinstance": lambda of, value: isinstance(value, of),
    "issubclass": lambda of, kind: issubclass(kind, of),
    "enter": lambda of: type(of).__enter__(of),
    "exit": lambda of: type(of).__exit__(of, None, None, None),
    "radd": lambda of, left: left + of,
    "rsub": lambda of, left: left - of,
    "rmul": lambda of, left: left * of,
    "rtruediv": lambda of, left: left / of,
}


class Objects:
    """The objects that the tests know of, by number.

    Args:
        source: The answer's Python; run when the first of its names is asked for.
    """

    def __init__(self, source: str):
        self._source = source
        self._defined: Mapping[str, object] | None = None
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._late: dict[int, Exception] = {}

    def answer(self, request: frames.Header) -> frames.Header:
        """Do what a request asks for; return the value, how its arguments were left, and what was raised."""
        try:
            if request.get("do") == "state":
                return {"value": [self._state(self._kept[request["of"]]), []], "error": None}
            value, arguments = self._perform(request)
            return {"value": self._encode([value, arguments]), "error": None}
        except (Exception, SystemExit) as error:
            return {"value": None, "error": self._describe(error)}

    def _perform(self, request: frames.Header) -> tuple[object, list[object]]:
        if "name" in request:
            if self._defined is None:
                self._defined = load_functions(self._source)
            return self._defined[request["name"]], []
        of, arguments = self._kept[request["of"]], self._decode(request["arguments"])
        if request["do"] == "next":
            return self._next(request["of"], int(request["count"])), []
        names = request.get("names", ())
        by_position = arguments[: len(arguments) - len(names)]
        keywords = dict(zip(names, arguments[len(by_position) :], strict=True))
        return OPERATIONS[request["do"]](of, *by_position, **keywords), arguments

    def _next(self, number: int, count: int) -> tuple[list[object], bool]:
        """Take items of an iterator; tell whether it has ended. What it raises is raised in its turn."""
        if late := self._late.pop(number, None):
            raise late
        items: list[object] = []
        try:
            items.extend(itertools.islice(self._kept[number], count))
        except Exception as error:
            if not items:
                raise
            self._late[number] = error
            return items, False
        return items, len(items) < count

    def _state(self, of: object) -> list[object]:
        """Write what makes an object equal to another of its class: its fields, and what it holds."""
        fields: dict[str, object] = {}
        for kind in reversed(type(of).__mro__):
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(of, name):
                    fields[name] = getattr(of, name)
        fields |= getattr(of, "__dict__", {})
        held = isinstance(of, plain.CONTAINERS)
        return [self._encode(fields), plain.encode_container(of, self._elsewhere) if held else None]

    def _encode(self, value: object) -> object:
        return plain.encode(value, self._elsewhere)

    def _decode(self, values: list[object]) -> list[object]:
        return [plain.decode(value, self._kept.__getitem__) for value in values]

    def _elsewhere(self, value: object) -> object:
        """Keep an object; say its number, its class's, and what tests have to know of it."""
        kind = type(value)
        said: dict[str, object] = {"equality": kind.__eq__ is not object.__eq__}
        if isinstance(value, type) and issubclass(value, Exception):
            said["lineage"] = self._lineage(value)
        return {"object": [self._keep(value), self._keep(kind), said]}

    def _keep(self, value: object) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
        return self._numbers[id(value)]

    def _describe(self, error: BaseException) -> frames.Header:
        try:
            arguments = self._encode(list(error.args))
            text = str(error)[:1000]
        except Exception:
            arguments, text = [], describe(error)
        said = {"lineage": self._lineage(type(error)), "number": self._keep(error)}
        return said | {"arguments": arguments, "text": text}

    def _lineage(self, kind: type) -> object:
        """Name an exception's class: Python's own by name, the answer's with its number and its bases."""
        if vars(builtins).get(kind.__name__) is kind:
            return kind.__name__
        return [self._keep(kind), kind.__name__, [self._lineage(base) for base in kind.__bases__]]


def serve(source: str, requests: int, replies: int) -> None:
    """Answer requests about what a source text defines, until the tests end."""
    objects = Objects(source)
    while True:
        request, _ = frames.receive(requests, _FOR_EVER)
        frames.send(replies, objects.answer(request))
