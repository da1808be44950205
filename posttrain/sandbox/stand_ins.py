"""The tests' process: stand-ins for what the answer defines, which is used where it is and never comes here.

Calling a stand-in sends plain data to the answer's process, and plain data comes back; an object of the
answer's own class stays there and is handed over as another stand-in. What the tests compare is plain data
here, or the fields of two objects, compared here: so a patched builtin, a forged message or an `__eq__` that
is always true changes nothing. All that an answer can do is to return values.
"""

import builtins
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from posttrain.sandbox import frames, plain

_FOR_EVER = float("inf")
#: Under this name the tests reach `Link.discard`, which is told of each value that a statement throws away.
DISCARD = "__discard__"
#: How many items of one iterator the tests may read.
MAX_ITEMS = 1_000_000
_SLOWLY, _MOST_AT_ONCE = 32, 1024  # items that are fetched one by one, before larger parts
#: From the answer, the first two would end a test's loop early without a trace, and the third would pass for
#: a module that the tests miss.
_NOT_PASSED_ON = (StopIteration, StopAsyncIteration, ImportError)
_NONSENSE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError)
#: How a class is named, but not a function: objects that tests make with it are theirs to add and order.
_CLASS_NAME = re.compile(r"_*[A-Z][A-Za-z0-9]*")


class LostError(BaseException):
    """The answer's process ended, hung or wrote nonsense; no `except Exception` of a test hides it."""


class UnsupportedError(BaseException):
    """The tests need what a sandbox cannot give: the fault is theirs."""


class Link:
    """The tests' end of the pipes to the answer's process.

    Args:
        replies: Pipe to read from.
        requests: Pipe to write to.

    Attributes:
        deadline: Moment until which the answer's process may take.
    """

    def __init__(self, replies: int, requests: int):
        self.deadline = _FOR_EVER
        self._replies, self._requests = replies, requests
        self._lost = False
        self._known: dict[int, Any] = {}
        self._returned: object = None
        self._changes: list[tuple[object, object]] = []

    def define(self, name: str) -> object:
        """Return what the answer defines under a name."""
        found = self._ask({"name": name, "arguments": []}, ())
        if isinstance(found, StandIn) and _CLASS_NAME.fullmatch(name):
            found._sandbox_makes_own = True
        return found

    def ask(
        self, of: int, do: str, arguments: Sequence[object] = (), names: Sequence[str] = (), count: int = 0
    ) -> Any:
        """Have an operation done on an object; return the value, or raise what was raised there.

        Args:
            of: The object's number.
            do: One of the operations of `objects`.
            arguments: What it is done with.
            names: Names of the last ones of them.
            count: How many of an iterator's items are fetched.
        """
        request = {"of": of, "do": do, "names": list(names), "count": count}
        return self._ask(
            request | {"arguments": [plain.encode(argument, _elsewhere) for argument in arguments]}, arguments
        )

    def discard(self, value: object) -> None:
        """Carry changes over to the arguments of a call whose value, just returned, nobody looks at."""
        if value is self._returned:
            self._apply()

    def _ask(self, request: Mapping[str, object], arguments: Sequence[object]) -> Any:
        if self._lost:
            raise LostError("the answer's process was lost")
        self._lost = True  # until it has answered: a late answer must not count for a later question
        try:
            frames.send(self._requests, request)
            reply, _ = frames.receive(self._replies, self.deadline)
            error = self._exception(reply["error"]) if reply["error"] else None
            value, after = (None, ()) if error else plain.decode(reply["value"], self._find)
            self._changes = list(zip(arguments, after, strict=False))
        except TimeoutError:
            raise LostError("longer than the time limit") from None
        except (OSError, EOFError):
            raise LostError("the answer's process has ended") from None
        except _NONSENSE:
            raise LostError("the answer's process wrote nonsense") from None
        self._lost = False
        if error:
            raise error
        self._returned = value
        if value is None:  # by Python's custom, only such a function changes its arguments
            self._apply()
        return value

    def _apply(self) -> None:
        for argument, new in self._changes:
            _overwrite(argument, new)
        self._changes = []

    def _find(self, reference: Any) -> object:
        """Return the stand-in for an object of the answer's process, or the class for one of its errors."""
        number, kind, said = reference
        if number not in self._known:
            if "lineage" in said:
                return self._error_class(said["lineage"])
            self._known[int(number)] = StandIn(self, int(number), int(kind), bool(said["equality"]))
        return self._known[number]

    def _error_class(self, lineage: Any) -> type:
        """Find Python's own class of a name, or make a class that `except` knows for one of the answer's."""
        if isinstance(lineage, str):
            return _own_error(lineage)
        number, name, bases = lineage
        if number not in self._known:
            fields = {"_sandbox_number": int(number), "__getattr__": _error_attribute, "__str__": _error_text}
            made = dict.fromkeys(map(self._error_class, bases))
            self._known[int(number)] = type(str(name), tuple(made), fields)
        return self._known[number]

    def _exception(self, said: frames.Header) -> BaseException:
        """Make what was raised in the answer's process."""
        arguments = plain.decode(said["arguments"], self._find)
        lineage, text = said["lineage"], str(said["text"])
        kind = self._error_class(lineage)
        if isinstance(lineage, str):
            try:
                return kind(*arguments) if kind.__name__ == lineage else kind(f"{lineage}: {text}")
            except TypeError:  # a class that its own arguments do not fit
                return RuntimeError(f"{lineage}: {text}")
        error = BaseException.__new__(kind, *arguments)
        error.__dict__.update(_sandbox_link=self, _sandbox_error=int(said["number"]), _sandbox_text=text)
        return error


class StandIn:
    """An object of the answer's process.

    It can be called, has attributes and items, and can be iterated over and printed. It equals itself, and an
    object of its class whose fields are equal where that class compares its objects; a container with
    methods also equals what it holds. Only of an object that the tests made themselves with a class of the
    answer's can they ask, with plain data, for sums, order and membership: for anything else that would hand
    the expected value to the answer.
    """

    _sandbox_makes_own = _sandbox_own = False

    _sandbox_link: Link
    _sandbox_number: int
    _sandbox_kind: int
    _sandbox_equality: bool
    _sandbox_items: list[object]
    _sandbox_read: int
    _sandbox_ended: bool

    def __init__(self, link: Link, number: int, kind: int, equality: bool):
        vars(self).update(
            _sandbox_link=link,
            _sandbox_number=number,
            _sandbox_kind=kind,
            _sandbox_equality=equality,
            _sandbox_read=0,
            _sandbox_items=[],
            _sandbox_ended=False,
        )

    def _sandbox_ask(self, do: str, *arguments: object) -> Any:
        return self._sandbox_link.ask(self._sandbox_number, do, arguments)

    def __call__(self, *arguments: object, **keywords: object) -> object:
        """Call the object where it is."""
        given = [*arguments, *keywords.values()]
        made = self._sandbox_link.ask(self._sandbox_number, "call", given, [*keywords])
        if self._sandbox_makes_own and isinstance(made, StandIn):
            made.__dict__["_sandbox_own"] = True
        return made

    def __getattr__(self, name: str) -> object:
        if name.startswith(("_sandbox_", "__")) and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return self._sandbox_ask("attribute", name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_sandbox_"):
            self.__dict__[name] = value
        else:
            self._sandbox_ask("set", name, value)

    def __delattr__(self, name: str) -> None:
        self._sandbox_ask("delete", name)

    def __iter__(self) -> Iterator[object]:
        return self._sandbox_ask("iter")

    def __next__(self) -> object:
        if not self._sandbox_items and not self._sandbox_ended:
            self._sandbox_fetch()
        if not self._sandbox_items:
            raise StopIteration
        return self._sandbox_items.pop()

    def _sandbox_fetch(self) -> None:
        read = self._sandbox_read
        if read > MAX_ITEMS:
            raise LostError(f"the answer's iterator has more than {MAX_ITEMS} items")
        count = 1 if read < _SLOWLY else min(read, _MOST_AT_ONCE)
        items, ended = self._sandbox_link.ask(self._sandbox_number, "next", count=count)
        self._sandbox_items, self._sandbox_ended = list(items)[::-1], bool(ended)
        self._sandbox_read += count

    def __contains__(self, value: object) -> bool:
        if self._sandbox_own or isinstance(value, StandIn):
            return bool(self._sandbox_ask("contains", value))
        return any(item is value or item == value for item in self)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, StandIn):
            held = self._sandbox_ask("state")[1]
            return held is not None and held == other
        same = self._sandbox_equality and self._sandbox_kind == other._sandbox_kind
        return same and self._sandbox_ask("state") == other._sandbox_ask("state")

    def __hash__(self) -> int:
        return hash(self._sandbox_kind if self._sandbox_equality else self._sandbox_number)

    def __enter__(self) -> object:
        return self._sandbox_ask("enter")

    def __exit__(self, *_: object) -> None:
        self._sandbox_ask("exit")

    def __deepcopy__(self, _: object) -> object:
        return self._sandbox_ask("deepcopy")

    def __copy__(self) -> Self:
        return self._sandbox_ask("copy")

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, StandIn) and bool(self._sandbox_ask("isinstance", value))

    def __subclasscheck__(self, kind: object) -> bool:
        return isinstance(kind, StandIn) and bool(self._sandbox_ask("issubclass", kind))


def _forward(do: str, kind: type | None = None) -> Callable[..., Any]:
    """Make a method that asks for an operation, for values of one kind."""

    def method(self: StandIn, *arguments: object) -> Any:
        value = self._sandbox_ask(do, *arguments)
        if kind is not None and type(value) is not kind:
            raise TypeError(f"{do} of an object returned no {kind.__name__}")
        return value

    return method


def _forward_own(do: str) -> Callable[..., Any]:
    """Make a method that asks for an operation of objects that are the tests' own, or with other objects."""

    def method(self: StandIn, *operands: object) -> Any:
        if not self._sandbox_own and not (operands and isinstance(operands[0], StandIn)):
            if operands:
                return NotImplemented
            raise TypeError(f"the answer gave an object where a number was asked for ({do})")
        value = self._sandbox_ask(do, *operands)
        if isinstance(value, StandIn):
            value._sandbox_own = self._sandbox_own
        return value

    return method


for _name, _kind in {
    "str": str,
    "repr": str,
    "format": str,
    "bool": bool,
    "len": int,
    "reversed": None,
}.items():
    setattr(StandIn, f"__{_name}__", _forward(_name, _kind))
for _name in ("getitem", "setitem", "delitem"):
    setattr(StandIn, f"__{_name}__", _forward(_name))
_OWN = """
lt le gt ge add sub mul matmul truediv floordiv mod pow lshift rshift and_ or_ xor neg pos abs invert
int float round divmod radd rsub rmul rtruediv
"""
for _name in _OWN.split():
    setattr(StandIn, f"__{_name.rstrip('_')}__", _forward_own(_name))


def _elsewhere(value: object) -> object:
    """Write what is no plain data of the tests': a stand-in, or an iterator's items."""
    number = vars(value).get("_sandbox_number") if isinstance(value, StandIn | type) else None
    if isinstance(number, int):
        return {"object": number}
    if hasattr(value, "__next__"):
        return {"iterator": [plain.encode(item, _elsewhere) for item in value]}  # type: ignore[attr-defined]
    raise UnsupportedError(f"a {type(value).__name__} cannot be handed to the answer, only plain data")


def _own_error(name: str) -> type:
    """Return a class of exceptions of Python's own; another one for those that are not passed on."""
    kind = getattr(builtins, name, None)
    if kind is object:
        return kind
    if not isinstance(kind, type) or not issubclass(kind, Exception | SystemExit):
        return RuntimeError
    return RuntimeError if issubclass(kind, _NOT_PASSED_ON) else kind


def _error_attribute(self: Any, name: str) -> object:
    link = vars(self).get("_sandbox_link")
    if link is None or name.startswith("__"):
        raise AttributeError(name)
    return link.ask(self._sandbox_error, "attribute", [name])


def _error_text(self: BaseException) -> str:
    return vars(self).get("_sandbox_text") or ", ".join(map(str, self.args))


def _overwrite(old: object, new: Any) -> None:
    """Carry over to a test's list, set, dictionary … how the answer left it."""
    if type(old) is not type(new) or old == new:
        return
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
    elif hasattr(old, "extend"):  # a deque
        old.clear()  # type: ignore[attr-defined]
        old.extend(new)  # type: ignore[attr-defined]
