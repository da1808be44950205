"""What runs the answer's code, within a process that has already given up its privileges."""

import atexit
import builtins
import io
import json
import os
import sys
import threading
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from posttrain.sandbox import plain

#: What a source text defines, by name.
Namespace: TypeAlias = dict[str, Any]
#: Where every task writes what it has to say of itself.
REPORT = 3
MAX_DETAIL = 300


def run(task: Callable[[], object]) -> int:
    """Run a task as a program: its streams, its exit code, its threads and its last output.

    Returns:
        The exit code; a failure is reported as `{"error": what}`.
    """
    sys.stdin = io.TextIOWrapper(io.FileIO(0, "r"), "utf-8", "replace")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), "utf-8", "replace", newline="\n")
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w")), "utf-8", "replace")
    builtins.exit = builtins.quit = sys.exit  # defined by site, which does not run here
    code = 0
    try:
        task()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        code = 1
        report({"error": describe(error)})
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter does at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        code = code or 1
    return code & 255


def load(source: str, name: str, beforehand: Mapping[str, object] | None = None) -> Namespace:
    """Run a source text as a module and return what it defines.

    Args:
        source: Python.
        name: Its `__name__`.
        beforehand: Names that it finds defined.
    """
    module = types.ModuleType(name)
    module.__dict__.update(beforehand or {})
    sys.modules[name] = module
    exec(compile(source, "answer.py", "exec"), module.__dict__)  # noqa: S102  # what a sandbox is for
    return module.__dict__


def load_functions(source: str) -> Namespace:
    """Run the definitions of an answer; the names of `typing`, used in signatures, need no import."""
    return load(source, "answer", {name: getattr(typing, name) for name in typing.__all__})


def call(source: str, name: str, arguments: Sequence[object]) -> None:
    """Report what a function, or a method of the class `Solution`, returns."""
    defined = load_functions(source)
    function = defined[name] if name in defined else getattr(defined["Solution"](), name)
    report({"value": plain.encode(function(*arguments), _no_object)})


def report(message: Mapping[str, object]) -> None:
    """Write a line for the supervisor."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(REPORT, data) :]


def describe(error: BaseException) -> str:
    """Describe an exception in one line; its text may be hostile as well."""
    try:
        text = f"{type(error).__name__}: {error}"[:MAX_DETAIL]
        return " ".join(text.encode(errors="backslashreplace").decode().split())
    except BaseException:
        return "an exception that cannot be described"


def _no_object(value: object) -> NoReturn:
    raise TypeError(f"returned an object of type {type(value).__name__}, which is no plain data")
