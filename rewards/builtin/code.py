"""Does the program that a model wrote pass its unit tests?"""

import math
import re
import textwrap
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
#: What may stand before a fence: marks of lists and quotations, around any white space.
_BEFORE = r"((?:[ \t]*(?:>|[-*+][ \t]|[0-9]{1,9}[.)][ \t]))*)([ \t]*)"
_OPENING = re.compile(_BEFORE + r"(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*")
_CLOSING = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*")
_QUOTED = re.compile(r"[ \t]*> ?")
_LANGUAGES = ("python", "python3", "py", "py3")
#: What rounding leaves where the exact value is 0.
_ROUNDING = 1e-12
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
    the first two forms starts anew. No process in which the answer runs ever holds what a test expects.

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
            `{"tests": "assert add(3, 4) == 7\n…"}`: Python that asserts, as MBPP's and HumanEval's does,
            functions `test_…`, or `TestCase`s. It runs apart from the answer, of which it sees plain data,
            exceptions and stand-ins for objects; its own functions cannot be handed to the answer. A list
            that the answer changes is changed where the call's value is None or thrown away. `"fn_name"`
            names what the answer defines, one name or a list, where more than one name is left undefined.
        seconds: Processor time of one test; waiting may take twice that.
        total_seconds: Time for all tests; the tests beyond it fail.
        memory_mb: Address space in MiB.
        all_or_nothing: Whether a share earns nothing.
        tolerance: Relative difference at which two decimal numbers are equal (first two forms). A printed
            one may also differ by its own rounding, so far as that is within the tolerance.

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
    """Return the last closed fenced block marked as Python, else the last without a mark, else nothing.

    A block inside a list or a quotation is read without the marks and the indentation that it has from there.
    """
    marked, unmarked = "", ""
    fence, language, quotes, width, lines = "", "", 0, 0, []
    for line in text.splitlines():
        if not fence:
            if found := _OPENING.fullmatch(line):
                before, _, fence, language = found.groups()
                quotes, width = before.count(">"), len(found[0][: found.start(3)].expandtabs(4))
                width -= len(before[: before.rfind(">") + 1].expandtabs(4)) if quotes else 0
                lines = []
            continue
        for _ in range(quotes):
            line = _QUOTED.sub("", line, count=1) if _QUOTED.match(line) else line
        found = _CLOSING.fullmatch(_outdented(line, width))
        if found and found[1].startswith(fence):
            if (language := language.strip("{}.").lower()) in _LANGUAGES:
                marked = _block(lines, width)
            elif not language:
                unmarked = _block(lines, width)
            fence = ""
        else:
            lines.append(line)
    return marked or unmarked


def _block(lines: list[str], width: int) -> str:
    """Take the indentation of its fence off a block, or what all of its lines share."""
    first = next((line for line in lines if line.strip()), "")
    if width and first[: len(first) - len(first.lstrip())].expandtabs(4).startswith(" " * width):
        lines = [_outdented(line, width) for line in lines]
        first = _outdented(first, width)
    text = "\n".join(lines)
    return textwrap.dedent(text) if first[:1] in (" ", "\t") else text


def _outdented(line: str, width: int) -> str:
    """Take at most so many columns of white space off a line."""
    if not width or not line[:1].isspace():
        return line
    space = line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4)
    return space[width:] + line.lstrip(" \t")


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
        a == b
        or (
            _is_decimal(a)
            and _NUMBER.fullmatch(b) is not None
            and _close(float(a), float(b), tolerance, min(tolerance, _half_a_digit(a)))
        )
        for a, b in zip(ours, theirs, strict=True)
    )


def _is_decimal(word: str) -> bool:
    return _NUMBER.fullmatch(word) is not None and not word.lstrip("+-").isdigit()


def _half_a_digit(word: str) -> float:
    """Return half of what the last digit of a printed number counts: the most that its rounding hides."""
    mantissa, _, exponent = word.lower().partition("e")
    places = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return 0.5 * 10.0**-places if abs(places) < 300 else 0.0


def _close(expected: float, value: float, tolerance: float, rounding: float = 0.0) -> bool:
    absolute = rounding or (min(tolerance, _ROUNDING) if expected == 0 else 0.0)
    try:
        return math.isclose(expected, value, rel_tol=tolerance, abs_tol=absolute)
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
