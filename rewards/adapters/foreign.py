"""A function of another toolkit: what it is called, what it takes, and how it is called."""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from rewards.sdk import RewardError

#: An episode, or those of a group.
Asked = TypeVar("Asked")
#: A verdict, or those of a group.
Told = TypeVar("Told")
_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Foreign:
    """A function, a partial, a callable object or a class without arguments, ready to be called.

    Attributes:
        function: What is called.
        name: The name given, or the function's or the class's.
        parameters: What it takes by name, in order, without `*args` and `**kwargs`.
        takes_all: Whether it takes every keyword.
        in_order: Whether it takes `*args` and nothing else, so that its arguments have an order and no names.
        is_async: Whether calling it gives a coroutine.
    """

    function: Callable[..., object]
    name: str
    parameters: Mapping[str, inspect.Parameter]
    takes_all: bool
    in_order: bool
    is_async: bool

    @property
    def required(self) -> list[str]:
        """The parameters without a default, in order."""
        return [key for key, taken in self.parameters.items() if taken.default is taken.empty]

    @property
    def bases(self) -> tuple[type, ...]:
        """The classes of the object that is called, or whose method is."""
        inner = unwrapped(self.function)
        return inspect.getmro(type(getattr(inner, "__self__", inner)))

    @property
    def doc(self) -> str | None:
        """The docstring of the function, or of the class that it is an instance of."""
        return inspect.getdoc(unwrapped(self.function))

    def call(self, values: Mapping[str, object]) -> object:
        """Call the function with those of the values that it takes, each in the way it takes them."""
        if self.in_order:
            return self.function(*values.values())
        first = [key for key, taken in self.parameters.items() if taken.kind is taken.POSITIONAL_ONLY]
        by_position = [values[key] for key in itertools.takewhile(values.__contains__, first)]
        by_name = {
            key: value
            for key, value in values.items()
            if key not in first and (self.takes_all or key in self.parameters)
        }
        return self.function(*by_position, **by_name)


def foreign(function: Callable[..., object], name: str) -> Foreign:
    """Get a function of another toolkit ready to be called; a class is instantiated once.

    Raises:
        RewardError: If it cannot be called, or is a class that needs arguments.
    """
    kind = unwrapped(function)
    if inspect.isclass(kind):
        name = name or kind.__name__
        try:
            made = function()
        except TypeError as error:
            raise RewardError(
                f"the class {kind.__name__} cannot be used without arguments ({error}); give an instance,"
                f" {kind.__name__}(…)"
            ) from error
    else:
        made = function
    if not callable(made):
        raise RewardError(f"{made!r:.100} is no function and cannot be called")
    inner = unwrapped(made)
    taken = _signature(made).parameters
    kinds = {each.kind for each in taken.values()}
    return Foreign(
        made,
        name or getattr(inner, "__name__", type(inner).__name__),
        {key: each for key, each in taken.items() if each.kind not in _ANY},
        inspect.Parameter.VAR_KEYWORD in kinds,
        kinds == {inspect.Parameter.VAR_POSITIONAL},
        inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__),
    )


def unwrapped(function: Callable[..., object]) -> Callable[..., object]:
    """Return what a partial is a partial of."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _signature(function: Callable[..., object]) -> inspect.Signature:
    """Return what a function takes, annotations evaluated where they can be."""
    for evaluated in (True, False):
        with contextlib.suppress(Exception):  # annotations may be anything; some functions in C say nothing
            return inspect.signature(function, eval_str=evaluated)
    return inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])


def judging(
    one: Foreign, ask: Callable[[Asked], tuple[object, Callable[[object], Told]]]
) -> Callable[[Asked], Told | Awaitable[Told]]:
    """Make the function of a reward; it is a coroutine function where the foreign one is.

    Args:
        one: The foreign function.
        ask: Calls it on an episode, or on all those of a group; returns what it returned, and what makes a
            verdict, or the group's verdicts, of that.
    """

    async def later(found: Awaitable[object], read: Callable[[object], Told]) -> Told:
        return read(await found)

    def judge(x: Asked) -> Told | Awaitable[Told]:
        found, read = ask(x)
        return later(found, read) if inspect.isawaitable(found) else read(found)

    async def judge_async(x: Asked) -> Told:
        found, read = ask(x)
        return read(await found if inspect.isawaitable(found) else found)

    chosen = judge_async if one.is_async else judge
    chosen.__doc__ = one.doc
    return chosen
