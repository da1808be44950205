"""The tests' process: runs their statements in order, against stand-ins for what the answer defines."""

import builtins
import time
from collections.abc import Callable, Sequence

from posttrain.sandbox.program import describe, report
from posttrain.sandbox.stand_ins import DISCARD, Link, UnsupportedError


def judge(statements: Sequence[tuple[bool, str]], names: Sequence[str], seconds: float, link: Link) -> None:
    """Run the tests' statements and report each test's verdict.

    Args:
        statements: Whether it is a test, and its source text; the others prepare.
        names: What the answer defines.
        seconds: Time for each statement.
        link: The pipes to the answer's process.
    """
    space: dict[str, object] = {"__name__": "tests", "__builtins__": builtins, DISCARD: link.discard}
    fault = _attempt(lambda: space.update({name: link.define(name) for name in names}), link, seconds)
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
