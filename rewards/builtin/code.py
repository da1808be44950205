"""Does the program that a model wrote pass its unit tests?"""

import math
import re
from dataclasses import dataclass
from typing import Any

from posttrain.files.strict_json import JsonError, parse_json
from posttrain.messages import without_thinking
from posttrain.sandbox import ResourceLimits, Sandbox, probe
from posttrain.sandbox.statements import split_tests
from posttrain.types import RewardInput, Score
from rewards.sdk import reward

DEADLINE_S = 60.0
#: Source texts beyond this are not run.
MAX_SOURCE = 100_000
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*")
_LANGUAGES = ("python", "python3", "py")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class _Tests:
    """The ground truth, checked; `cases` are pairs of input and expected output, `text` is test code."""

    cases: tuple[tuple[Any, Any], ...] = ()
    text: str = ""
    names: tuple[str, ...] = ()


@reward("code", deadline_s=DEADLINE_S)
def code(
    x: RewardInput,
    seconds: float = 4.0,
    total_seconds: float = 20.0,
    memory_mb: int = 1024,
    all_or_nothing: bool = False,
    tolerance: float = 1e-6,
) -> Score | None:
    r"""Score the share of unit tests that the answer's last fenced block of Python passes.

    The block runs in a sandbox with the standard library only; it cannot read or write files. Each test of
    the first two forms starts anew, and what comes out is compared here, outside the process that ran it.

    Formula: passed / tests; with `all_or_nothing` 1 if all passed, else 0. No Python block scores 0, and so
    does a test that fails, raises, exits with another code than 0, or passes a limit.

    Range: [0, 1]. Source: LiveCodeBench (Jain et al. 2024) and APPS for the first two forms, HumanEval and
    MBPP for the third; the sandbox and the tolerance are ours (assumed).

    Args:
        x: `ground_truth` is one of these, or its JSON text:
            `{"inputs": ["3 4\n", …], "outputs": ["7\n", …]}`: standard input and output, compared line by
            line and word by word; decimal numbers may differ by `tolerance`.
            `{"fn_name": "add", "inputs": [[3, 4], …], "outputs": [7, …]}`: arguments and the value returned
            by the function, or by the method of a class `Solution`; a tuple equals a list, keys are text.
            `{"tests": "assert add(3, 4) == 7\n…"}`: Python that asserts. It runs apart from the answer, of
            which it sees only plain data and objects whose methods it can call. `"fn_name"` names what the
            answer defines, one name or a list, where that is not the one name that they leave undefined.
        seconds: Processor time of one test; waiting may take twice that.
        total_seconds: Time for all tests; the tests beyond it fail.
        memory_mb: Address space in MiB.
        all_or_nothing: Whether a share earns nothing.
        tolerance: Relative or absolute difference at which two decimal numbers are equal (first two forms).

    Raises:
        ValueError: If the ground truth is of none of these forms, or the limits are out of range.
        SandboxError: If this machine cannot confine code, or the sandbox failed: the sample does not count.
    """
    if x.ground_truth is None:
        return None
    tests = _read_tests(x.ground_truth)
    if not (0 < seconds <= total_seconds <= DEADLINE_S - 15):
        raise ValueError(f"code: need 0 < seconds <= total_seconds <= {DEADLINE_S - 15:g}")
    source = last_python_block(without_thinking(x.answer))
    if not source.strip():
        return Score(0.0, note="no fenced block of Python")
    if len(source) > MAX_SOURCE:
        return Score(0.0, note=f"more than {MAX_SOURCE} characters of code")
    probe()
    with Sandbox(source, ResourceLimits(seconds, total_seconds, memory_mb)) as sandbox:
        failures = _failures(sandbox, tests, all_or_nothing, tolerance)
    passed = failures.count("")
    share = passed / len(failures)
    value = float(share == 1.0) if all_or_nothing else share
    first = next((f"; test {i}: {why}" for i, why in enumerate(failures, 1) if why), "")
    parts = {"passed": float(passed), "tests": float(len(failures))}
    return Score(value, parts, f"{passed} of {len(failures)} tests passed{first}")


def last_python_block(text: str) -> str:
    """Return the last closed fenced block marked as Python, else the last without a mark, else nothing."""
    marked, unmarked = "", ""
    fence, language, lines = "", "", []
    for line in text.splitlines():
        found = _FENCE.fullmatch(line)
        if not fence:
            if found:
                fence, language, lines = found[1], found[2].lower(), []
        elif found and found[1].startswith(fence) and not found[2]:
            if language in _LANGUAGES:
                marked = "\n".join(lines)
            elif not language:
                unmarked = "\n".join(lines)
            fence = ""
        else:
            lines.append(line)
    return marked or unmarked


def _failures(sandbox: Sandbox, tests: _Tests, all_or_nothing: bool, tolerance: float) -> list[str]:
    """Run the tests; return for each "", or why it failed."""
    if tests.text:
        statements, names = split_tests(tests.text, tests.names)
        try:
            return [why or "" for why in sandbox.run_tests(statements, names)]
        except ValueError as error:
            raise ValueError(f"ground_truth: tests: {error}") from None
    failures: list[str] = []
    for given, expected in tests.cases:
        outcome = sandbox.call(tests.names[0], given) if tests.names else sandbox.run_program(given)
        if outcome.status != "done":
            failures.append(f"{outcome.status}: {outcome.detail}")
        elif tests.names:
            failures.append("" if same_value(expected, outcome.value, tolerance) else "another value")
        else:
            failures.append("" if same_output(expected, outcome.output, tolerance) else "another output")
        if all_or_nothing and failures[-1]:
            failures += ["not run"] * (len(tests.cases) - len(failures))
            break
    return failures


def same_output(expected: str, output: str, tolerance: float) -> bool:
    """Check whether two outputs agree line by line, white space aside; decimal numbers by tolerance."""
    ours, theirs = (text.strip().splitlines() for text in (expected, output))
    return len(ours) == len(theirs) and all(
        a.split() == b.split() or _same_words(a.split(), b.split(), tolerance)
        for a, b in zip(ours, theirs, strict=True)
    )


def same_value(expected: object, value: object, tolerance: float) -> bool:
    """Compare a value with one from JSON: tuples count as lists, keys as text, decimals by tolerance."""
    if isinstance(expected, list):
        return (
            isinstance(value, list | tuple)
            and len(expected) == len(value)
            and all(same_value(a, b, tolerance) for a, b in zip(expected, value, strict=True))
        )
    if isinstance(expected, dict):
        if not isinstance(value, dict) or len(expected) != len(value):
            return False
        by_text = {_key(key): item for key, item in value.items()}
        return expected.keys() == by_text.keys() and all(
            same_value(item, by_text[key], tolerance) for key, item in expected.items()
        )
    if isinstance(expected, float) and isinstance(value, int | float):
        return _close(expected, value, tolerance)
    return isinstance(value, type(expected) | int | float) and expected == value


def _key(key: object) -> str | None:
    """Return a key as text; None for one that JSON cannot have."""
    is_number = isinstance(key, float) or (isinstance(key, int) and key.bit_length() < 64)
    return key if isinstance(key, str) else str(key) if is_number else None


def _same_words(ours: list[str], theirs: list[str], tolerance: float) -> bool:
    return len(ours) == len(theirs) and all(
        a == b or (_is_decimal(a) and _NUMBER.fullmatch(b) and _close(float(a), float(b), tolerance))
        for a, b in zip(ours, theirs, strict=True)
    )


def _is_decimal(word: str) -> bool:
    return _NUMBER.fullmatch(word) is not None and not word.lstrip("+-").isdigit()


def _close(expected: float, value: float, tolerance: float) -> bool:
    try:
        return math.isclose(expected, value, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an integer beyond every float
        return False


def _read_tests(truth: object) -> _Tests:
    """Check a ground truth.

    Raises:
        ValueError: Naming the key at fault.
    """
    if isinstance(truth, str):
        try:
            truth = parse_json(truth)
        except JsonError as error:
            raise ValueError(f"ground_truth: text that is no JSON: {error}") from None
    if not isinstance(truth, dict):
        raise ValueError("ground_truth: must be an object with inputs and outputs, or with tests")
    name = truth.get("fn_name", [])
    names = tuple(name) if isinstance(name, list) else (name,)
    if not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise ValueError("ground_truth: fn_name must be a name, or for tests a list of names")
    if "tests" in truth:
        if not isinstance(truth["tests"], str) or not truth["tests"].strip():
            raise ValueError("ground_truth: tests must be a text of Python")
        return _Tests(text=truth["tests"], names=names)
    inputs, outputs = truth.get("inputs"), truth.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise ValueError("ground_truth: inputs and outputs must be lists of equal length")
    if not inputs:
        raise ValueError("ground_truth: inputs is empty: a sample needs at least one test")
    if names and not (len(names) == 1 and all(isinstance(given, list) for given in inputs)):
        raise ValueError("ground_truth: with one fn_name each of inputs is the list of its arguments")
    if not names and not all(isinstance(text, str) for text in [*inputs, *outputs]):
        raise ValueError("ground_truth: without fn_name, inputs and outputs are texts")
    return _Tests(tuple(zip(inputs, outputs, strict=True)), names=names)
