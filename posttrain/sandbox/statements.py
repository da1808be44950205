"""Reading a text of Python tests: which statements are tests, and which names the answer must define."""

import ast
import builtins
import functools
from collections.abc import Iterator

_BLOCKS = (ast.For, ast.While, ast.With, ast.If, ast.Try)


@functools.lru_cache(maxsize=256)
def split_tests(source: str, names: tuple[str, ...]) -> tuple[list[tuple[bool, str]], list[str]]:
    """Split tests into statements that run one after the other.

    A test is an `assert`, a block that holds one, or a call of a function of the tests that holds one; the
    rest prepares. HumanEval's `def check(candidate)` is called with the first name where nothing calls it.

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
    undefined = _undefined(tree)
    if not names and len(undefined) == 1:
        names = tuple(undefined)
    if not names or undefined - set(names):
        raise ValueError(
            f"the tests leave {', '.join(sorted(undefined)) or 'no name'} undefined: import in them"
            " what they use, and list under fn_name what the answer defines"
        )
    checks = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and _asserts(node)}
    statements = [(_is_test(node, checks), ast.unparse(node)) for node in tree.body]
    if "check" in checks and not any(is_test for is_test, _ in statements):
        statements.append((True, f"check({names[0]})"))
    if not any(is_test for is_test, _ in statements):
        raise ValueError("the tests hold no assert, and call no function of theirs that does")
    return statements, list(names)


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
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name
