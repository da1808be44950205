"""Tests in one process, the answer in another: the tests see the answer's values, never its code.

The tests hold stand-ins for what the answer defines. Calling one sends plain data to the answer's process,
and plain data comes back; an object of the answer's own class stays there and is handed over as another
stand-in, which equals only itself. So a patched builtin, a forged message or an `__eq__` that is always true
changes nothing: all that the answer can do is to return values.
"""

import builtins
import time
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.sandbox import frames, plain
from posttrain.sandbox.program import describe, load_functions, report

_FOR_EVER = float("inf")
#: From the answer, the first two would end a test's loop early without a trace, and the third would pass for
#: a module that the tests miss.
_NOT_PASSED_ON = (StopIteration, StopAsyncIteration, ImportError)
_NONSENSE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


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
        self._stand_ins: dict[int, StandIn] = {}

    def ask(self, arguments: Sequence[object] = (), **request: object) -> object:
        """Send a request; return the value that comes back, or raise what was raised there."""
        request["arguments"] = [plain.encode(argument, _number_of) for argument in arguments]
        if self._lost:
            raise LostError("the answer's process was lost")
        self._lost = True  # until it has answered: a late answer must not count for a later question
        try:
            frames.send(self._requests, request)
            reply, _ = frames.receive(self._replies, self.deadline)
            name, message = reply["error"]
            value, after = plain.decode(reply["value"], self._stand_in)
        except TimeoutError:
            raise LostError("longer than the time limit") from None
        except (OSError, EOFError):
            raise LostError("the answer's process has ended") from None
        except _NONSENSE:
            raise LostError("the answer's process wrote nonsense") from None
        self._lost = False
        if name:
            raise _exception(str(name), str(message))
        if value is None:  # by Python's custom, only such a function changes its arguments
            for argument, new in zip(arguments, after, strict=False):
                _overwrite(argument, new)
        return value

    def _stand_in(self, number: int) -> "StandIn":
        return self._stand_ins.setdefault(int(number), StandIn(self, int(number)))


class StandIn:
    """An object of the answer's process: it can be called, and has attributes; it equals only itself."""

    def __init__(self, link: Link, number: int):
        self._sandbox_link, self._sandbox_number = link, number

    def __call__(self, *arguments: object, **keywords: object) -> object:
        """Call the object where it is."""
        names = list(keywords)
        given = [*arguments, *keywords.values()]
        return self._sandbox_link.ask(given, call=self._sandbox_number, names=names)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._sandbox_link.ask(attribute=name, of=self._sandbox_number)


def serve(source: str, requests: int, replies: int) -> None:
    """Run the answer's code, in its process, then answer requests until the tests end."""
    kept: list[Any] = []
    numbers: dict[int, int] = {}
    defined: dict[str, object] = {}

    def keep(value: object) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(kept)
            kept.append(value)
        return numbers[id(value)]

    def perform(request: frames.Header) -> list[object]:
        if "name" in request:
            if not defined:
                defined.update(load_functions(source))
            return [defined[request["name"]], []]
        if "attribute" in request:
            return [getattr(kept[request["of"]], request["attribute"]), []]
        arguments = [plain.decode(argument, kept.__getitem__) for argument in request["arguments"]]
        names = request["names"]
        by_position = arguments[: len(arguments) - len(names)]
        keywords = dict(zip(names, arguments[len(by_position) :], strict=True))
        return [kept[request["call"]](*by_position, **keywords), arguments]

    while True:
        request, _ = frames.receive(requests, _FOR_EVER)
        error = ["", ""]
        try:
            value = plain.encode(perform(request), keep)
        except Exception as raised:
            value, error = plain.encode([None, []], keep), [type(raised).__name__, describe(raised)]
        frames.send(replies, {"value": value, "error": error})


def judge(statements: list[tuple[bool, str]], names: list[str], seconds: float, link: Link) -> None:
    """Run the tests' statements, in their process, in order and report each test's verdict.

    Args:
        statements: Whether it is a test, and its source text; the others prepare.
        names: What the answer defines.
        seconds: Time for each statement.
        link: The pipes to the answer's process.
    """
    space: dict[str, object] = {"__name__": "tests", "__builtins__": builtins}
    fault = _attempt(lambda: space.update({name: link.ask(name=name) for name in names}), link, seconds)
    for is_test, source in statements:
        code = compile(source, "tests.py", "exec")
        if not fault:
            found = _attempt(lambda code=code: exec(code, space), link, seconds)  # noqa: S102
            fault = "" if is_test and not found.startswith("!") else found
        else:
            found = fault
        if found.startswith("!"):
            report({"unsupported": found[1:]})
            return
        if is_test:
            report({"failed": found})


def _attempt(action: Callable[[], object], link: Link, seconds: float) -> str:
    """Run a step; "" or what went wrong, with "!" before it where the tests are at fault."""
    link.deadline = time.monotonic() + seconds
    try:
        action()
    except (UnsupportedError, ModuleNotFoundError) as error:
        return f"!{describe(error)}"
    except BaseException as error:
        return describe(error)
    return ""


def _number_of(value: object) -> int:
    if isinstance(value, StandIn):
        return value._sandbox_number
    raise UnsupportedError(f"a {type(value).__name__} cannot be handed to the answer, only plain data")


def _exception(name: str, message: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _NOT_PASSED_ON):
        try:
            return kind(message)
        except TypeError:  # UnicodeDecodeError and its like take more
            pass
    return RuntimeError(f"{name}: {message}")


def _overwrite(old: object, new: Any) -> None:
    """Carry over to a test's list, set or dictionary how the answer left it."""
    if type(old) is not type(new) or old == new:
        return
    if isinstance(old, list):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
