"""Reading a text of Python tests: which statements are tests, and which names the answer must define."""

import ast
import builtins
import functools
import importlib
from collections.abc import Iterator

from posttrain.sandbox.stand_ins import DISCARD

#: What tests take `*` from: to know its names a module is imported here, so not any one.
_STARRED = (
    "bisect cmath collections copy datetime decimal fractions functools heapq itertools math operator random"
    " re statistics string typing"
).split()
#: Modules from which tests import what the answer defines.
_ANSWERS = ("solution", "answer", "submission")
_BLOCKS = (ast.For, ast.While, ast.With, ast.If, ast.Try)


@functools.lru_cache(maxsize=256)
def split_tests(source: str, names: tuple[str, ...]) -> tuple[list[tuple[bool, str]], list[str]]:
    """Split tests into statements that run one after the other.

    A test is an `assert`, a block that holds one, or a call of a function of the tests that holds one; the
    rest prepares. Where there is none, functions `test…` and methods `test…` of a `TestCase` are called, and
    HumanEval's `def check(candidate)` with the first name. What is imported from a module called `solution`
    is what the answer defines.

    Args:
        source: The tests.
        names: What the answer defines; () for the one name that the tests leave undefined.

    Returns:
        Whether each statement is a test and its text, and the names.

    Raises:
        ValueError: If it is no Python, holds no test, or leaves other names undefined.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the tests are no Python: {error}") from None
    imported = _take_imports(tree)
    undefined = _undefined(tree)
    if not names:
        names = tuple(imported) or (tuple(undefined) if len(undefined) == 1 else ())
    names = tuple(dict.fromkeys([*names, *imported]))
    if not names or undefined - set(names):
        raise ValueError(
            f"the tests leave {', '.join(sorted(undefined)) or 'no name'} undefined: import in them"
            " what they use, and list under fn_name what the answer defines"
        )
    checks = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and _asserts(node)}
    statements = [(_is_test(node, checks), ast.unparse(_Discarding().visit(node))) for node in tree.body]
    if not any(is_test for is_test, _ in statements):
        statements += _uncalled(tree, names[0])
    if not any(is_test for is_test, _ in statements):
        raise ValueError("the tests hold no assert, and call no function of theirs that does")
    return statements, list(names)


def _take_imports(tree: ast.Module) -> list[str]:
    """Take what is imported from the answer out of the tests; return the names."""
    names: list[str] = []
    for node in list(tree.body):
        if isinstance(node, ast.ImportFrom) and node.module in _ANSWERS:
            if any(alias.name == "*" or alias.asname for alias in node.names):
                raise ValueError(f"the tests import from {node.module} under other names, or all of it")
            names += [alias.name for alias in node.names]
            tree.body.remove(node)
    return names


def _uncalled(tree: ast.Module, first: str) -> list[tuple[bool, str]]:
    """Call the functions and methods that a test runner would find, or the `check` of HumanEval."""
    calls: list[tuple[bool, str]] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            calls.append((True, f"check({first})"))
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test") and not node.args.args:
            calls.append((True, f"{node.name}()"))
        elif isinstance(node, ast.ClassDef) and any("TestCase" in ast.unparse(base) for base in node.bases):
            calls.append((False, f"{node.name}.setUpClass()"))
            calls += [
                (True, f"{node.name}({method.name!r}).debug()")
                for method in node.body
                if isinstance(method, ast.FunctionDef) and method.name.startswith("test")
            ]
    return calls


class _Discarding(ast.NodeTransformer):
    """Hands the value of every call that stands alone to `DISCARD`."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        self.generic_visit(node)
        if isinstance(node.value, ast.Call):
            node.value = ast.Call(ast.Name(DISCARD, ast.Load()), [node.value], [])
        return node


def _is_test(node: ast.stmt, checks: set[str]) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return isinstance(node.value.func, ast.Name) and node.value.func.id in checks
    return isinstance(node, ast.Assert) or (isinstance(node, _BLOCKS) and _asserts(node))


def _asserts(node: ast.stmt) -> bool:
    return any(isinstance(inner, ast.Assert | ast.Raise) for inner in ast.walk(node))


def _undefined(tree: ast.Module) -> set[str]:
    """Find the names that are read somewhere and defined nowhere."""
    read = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    return read - set(_defined(tree)) - set(dir(builtins)) - {"__name__"}


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom) and node.module in _STARRED and node.names[0].name == "*":
            yield from dir(importlib.import_module(node.module))
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name
