"""The sandbox: what runs in it as it would elsewhere, its limits, its layers and its refusals."""

import contextlib
import multiprocessing
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.sandbox import (
    Execution,
    ResourceLimits,
    Sandbox,
    SandboxError,
    SandboxMissing,
    landlock,
    plain,
    probe,
    seccomp,
)
from posttrain.sandbox import probe as probe_module
from posttrain.sandbox.statements import split_tests

ROOT = Path(__file__).parents[3]


def run(source: str, text: str = "", limits: ResourceLimits | None = None) -> Execution:
    with Sandbox(source, limits or ResourceLimits()) as sandbox:
        return sandbox.run_program(text)


PROGRAMS = [
    ("print(input() + '!')", "é漢", "é漢!\n"),
    ("import sys\nfor line in sys.stdin: print(line.strip())", "a\nb", "a\nb\n"),
    ("print(open(0).read())", "x", "x\n"),
    ("import sys\nsys.stdout.write(sys.stdin.buffer.read().decode())", "raw", "raw"),
    ("import os\nprint(os.read(0, 9).decode())", "fd", "fd\n"),
    ("import atexit, sys\natexit.register(sys.stdout.write, 'late')", "", "late"),
    ("import threading\nthreading.Thread(target=print, args=('thread',)).start()", "", "thread\n"),
    ("import sys\nprint(1)\nsys.exit(0)", "", "1\n"),
    ("exit()", "", ""),
    ("print(__name__)", "", "__main__\n"),
    ("from dataclasses import dataclass\n@dataclass\nclass P:\n  x: int\nprint(P(1))", "", "P(x=1)\n"),
    ("from concurrent.futures import ThreadPoolExecutor as T\nprint(*T(2).map(abs, [-1]))", "", "1\n"),
    ("import decimal, fractions, json, statistics, datetime, bisect, array, zoneinfo\nprint(1)", "", "1\n"),
    ("import sqlite3, hashlib, zlib, ctypes\nprint(hashlib.md5(b'').hexdigest()[:4])", "", "d41d\n"),
    ("import resource\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))\nprint(1)", "", "1\n"),
    ("print({chr(97 + i) for i in range(9)} == 1, *{'a', 'b', 'c', 'd'})", "", None),
]


@pytest.mark.parametrize(("source", "text", "output"), PROGRAMS)
def test_a_program_runs_as_it_would_elsewhere(source: str, text: str, output: str | None) -> None:
    outcome = run(source, text)
    assert (outcome.status, outcome.detail) == ("done", "")
    assert outcome.output == (run(source, text).output if output is None else output)


ENDS = [
    ("1 / 0", "error", "ZeroDivisionError"),
    ("import sys\nsys.exit(3)", "error", "exit code 3"),
    ("raise SystemExit('no')", "error", "exit code 1"),
    ("import ctypes\nctypes.string_at(0)", "crash", "signal 11"),
    ("import numpy", "error", "ModuleNotFoundError"),
    ("x = bytearray(1 << 30)", "error", "MemoryError"),
    ("while True: print('x' * 1000)", "output", "output"),
    ("while True: pass", "time", ""),
    ("import time\ntime.sleep(60)", "time", ""),
    ("print(", "error", "SyntaxError"),
    ("\0", "error", ""),
    ("import asyncio\nasyncio.run(asyncio.sleep(0))", "error", "PermissionError"),
    ("open('/tmp/written-by-an-answer', 'w')", "error", "PermissionError"),
]


@pytest.mark.parametrize(("source", "status", "detail"), ENDS)
def test_how_a_program_ended_is_told(source: str, status: str, detail: str) -> None:
    outcome = run(source, limits=ResourceLimits(seconds=1.0, memory_mb=256))
    assert outcome.status == status
    assert detail in outcome.detail


def test_the_total_time_is_shared() -> None:
    with Sandbox("while True: pass", ResourceLimits(seconds=1.0, total_seconds=1.5)) as sandbox:
        begun = time.monotonic()
        assert [sandbox.run_program("").status for _ in range(50)] == ["time"] * 50
        assert time.monotonic() - begun < 4


def test_a_large_input_and_output_pass() -> None:
    text = "x" * (8 << 20)
    assert run("print(input())", text).output == text + "\n"


def test_it_runs_in_a_process_that_may_have_no_children() -> None:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    worker = context.Process(target=lambda: results.put(run("print(1)").output), daemon=True)
    worker.start()
    assert results.get() == "1\n"
    worker.join()


def test_it_holds_without_namespaces() -> None:
    script = (
        "import os\nfrom posttrain.sandbox import linux, probe\n"
        "user = os.geteuid()\n"
        "if user == 0: os.setresuid(65534, 0, 0)\n"  # limits of threads never hold for root itself
        "linux.unshare(0x10000000)\n"
        "open('/proc/self/uid_map', 'w').write(f'{user} {user} 1')\n"
        "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        "linux.prctl(28, 3)\n"  # PR_SET_SECUREBITS, SECBIT_NOROOT: a new program of root gets nothing back
        "linux.drop_capabilities()\n"
        "print(probe()['namespaces'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if "in <module>\n    linux.unshare" in done.stderr:
        pytest.skip("user namespaces are forbidden here")
    assert done.stdout == "none\n", done.stderr


class TestProbe:
    @pytest.fixture(autouse=True)
    def fresh(self) -> Any:
        probe_module.cache_clear()
        yield
        probe_module.cache_clear()

    def test_without_linux_nothing_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        with pytest.raises(SandboxMissing, match="darwin"):
            probe()

    def test_a_file_that_can_be_read_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("posttrain.sandbox.runner.readable_paths", lambda: (["/"], []))
        with pytest.raises(SandboxMissing, match="read a file, list a directory, read of other processes"):
            probe()

    def test_a_sandbox_that_does_not_start_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("posttrain.sandbox.runner.readable_paths", lambda: (["/no/such/path"], []))
        with pytest.raises(SandboxMissing, match="No such file"):
            probe()


def test_a_supervisor_that_is_lost_is_an_error_of_the_sandbox() -> None:
    with Sandbox("print(1)", ResourceLimits()) as sandbox:
        sandbox._process.kill()
        sandbox._process.wait()
        with pytest.raises(SandboxError, match="lost"):
            sandbox.run_program("")


def _judge(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """A small interpreter of classic BPF: the verdict on one call whose arguments are all the same."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *[argument] * 6)
    steps = list(struct.iter_unpack("<HBBI", program))
    position, value = 0, 0
    while True:
        code, if_true, if_false, constant = steps[position]
        position += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, constant)[0]
        elif code == 0x54:
            value &= constant
        elif code == 0x15:
            position += if_true if value == constant else if_false
        elif code == 0x35:
            position += if_true if value >= constant else if_false
        else:
            return constant


@pytest.mark.parametrize(
    ("machine", "architecture", "column"), [("x86_64", 0xC000003E, 0), ("aarch64", 0xC00000B7, 1)]
)
def test_the_filter_allows_its_list_and_nothing_else(machine: str, architecture: int, column: int) -> None:
    code = seccomp.program(machine)
    allowed = {numbers[column] for numbers in seccomp.ALLOWED.values()} - {None}
    filtered = {numbers[column]: values for numbers, _, _, values in seccomp.FILTERED.values()}
    for number in range(600):
        verdict = _judge(code, architecture, number, argument=0x7777)
        wanted = 0x7FFF0000 if number in allowed else 0x50026 if number == seccomp.CLONE3 else 0x50001
        assert verdict == wanted, number
    for number, values in filtered.items():
        assert number is not None
        assert [_judge(code, architecture, number, value) for value in values] == [0x7FFF0000] * len(values)
    assert _judge(code, 0x40000003, 0) == 0x80000000
    assert _judge(code, architecture, 0x40000000) == 0x80000000


def test_the_numbers_are_those_of_the_kernel_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h")
    for column, path in enumerate(header):
        if not path.exists():
            pytest.skip("no kernel headers here")
        known = {n: int(v) for n, v in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", path.read_text())}
        known.setdefault("newfstatat", known.get("fstatat", -1))
        ours = seccomp.ALLOWED | {name: entry[0] for name, entry in seccomp.FILTERED.items()}
        assert {name: pair[column] for name, pair in ours.items()} == {name: known.get(name) for name in ours}


def test_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: type("Name", (), {"machine": "riscv64"}))
    with pytest.raises(OSError, match="riscv64"):
        seccomp.machine_name()


def test_landlock_is_here() -> None:
    assert landlock.version() >= 1


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(2**1000, 2**1200) | st.text() | st.binary()
    | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    | st.frozensets(st.integers())
    | st.sets(st.text()),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=200)
@given(PLAIN)
def test_plain_data_survives_the_crossing(value: Any) -> None:
    kept: list[Any] = []
    assert plain.decode(plain.encode(value, kept.index), kept.__getitem__) == value


@settings(max_examples=200)
@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v))
)
def test_any_json_is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(ValueError, TypeError):
        plain.decode(value, [].__getitem__)


class TestSplitTests:
    def test_tests_and_preparation(self) -> None:
        source = "import math\nx = f(1)\nassert x == 2\nfor i in range(3):\n    assert f(i)\nf(3)"
        statements, names = split_tests(source, ())
        assert [is_test for is_test, _ in statements] == [False, False, True, True, False]
        assert names == ["f"]

    def test_the_check_of_humaneval_is_called(self) -> None:
        statements, _ = split_tests("def check(candidate):\n    assert candidate(1) == 2", ("f",))
        assert statements[-1] == (True, "check(f)")

    @pytest.mark.parametrize(
        ("source", "names", "why"),
        [
            ("assert f(1) ==", (), "no Python"),
            ("f(1)", (), "no assert"),
            ("assert 1 == 1", (), "no name"),
            ("assert isclose(f(1), 2)", (), "f, isclose"),
            ("assert isclose(f(1), 2)", ("f",), "import"),
            ("(" * 10_000, (), "no Python"),
        ],
    )
    def test_what_cannot_be_judged_is_refused(self, source: str, names: tuple[str, ...], why: str) -> None:
        with pytest.raises(ValueError, match=why):
            split_tests(source, names)


def test_tests_that_need_more_than_plain_data_are_refused() -> None:
    with Sandbox("def f(g): return g(1)", ResourceLimits()) as sandbox:
        with pytest.raises(ValueError, match="function"):
            sandbox.run_tests([(True, "assert f(lambda x: x) == 1")], ["f"])
        with pytest.raises(ValueError, match="numpy"):
            sandbox.run_tests([(False, "import numpy"), (True, "assert f(1)")], ["f"])


def test_a_preparation_that_fails_fails_the_tests_after_it() -> None:
    source = "def f(x):\n  if x == 2: raise KeyError(x)\n  return x"
    statements = [(False, "x = f(1)"), (True, "assert x == 1"), (False, "x = f(2)"), (True, "assert x == 1")]
    with Sandbox(source, ResourceLimits()) as sandbox:
        first, second = sandbox.run_tests(statements, ["f"])
    assert first is None
    assert second is not None
    assert "KeyError" in second
