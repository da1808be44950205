"""Running an answer's code from outside: the caller sends inputs, gets outputs, and judges them itself."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, TypedDict

from posttrain.files.strict_json import JsonError, parse_json
from posttrain.sandbox import frames, plain

#: Where shared libraries that Python's own modules need may lie.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_NOT_OURS = {"site-packages", "dist-packages"}
#: Longer than the supervisor itself ever needs.
_GRACE_S = 10.0
#: Neither site-packages nor the user's, and no module from the current directory.
_PYTHON = (sys.executable, "-S", "-s", "-P", "-X", "utf8")
# Without the package's own __init__, which would load the whole library.
_BOOT = """
import sys, types
for name, folder in zip(("posttrain", "posttrain.sandbox"), sys.argv[2:]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from posttrain.sandbox.supervisor import main
main(int(sys.argv[1]))
"""


class SandboxError(RuntimeError):
    """The sandbox itself failed, which says nothing about the code in it."""


@dataclass(frozen=True)
class ResourceLimits:
    """What a program may use.

    Attributes:
        seconds: Processor time for one run; waiting may take twice that.
        total_seconds: Time for all the runs of one sandbox.
        memory_mb: Address space in MiB.
    """

    seconds: float = 4.0
    total_seconds: float = 20.0
    memory_mb: int = 1024


@dataclass(frozen=True)
class Execution:
    """How one run ended. Everything in it but `status` and `seconds` was written by the code in the sandbox.

    Attributes:
        status: `done`, `error` (an exception, or an exit code that is not 0), `crash` (killed by a signal),
            `time` or `output` (a limit was passed).
        output: What it wrote to standard output.
        value: What a function returned, as plain data; None where it did not return.
        detail: One line on an error.
        seconds: Processor time.
    """

    status: Literal["done", "error", "crash", "time", "output"]
    output: str = ""
    value: object = None
    detail: str = ""
    seconds: float = 0.0


class Layers(TypedDict):
    """What stands between confined code and the machine, beside seccomp and limits.

    Attributes:
        landlock: The version of its interface, from 1 up.
        namespaces: Which could be left: "root", "user" or "none".
    """

    landlock: int
    namespaces: str


class Sandbox:
    r"""One source text and a process that runs it, as often as asked, each time from the beginning.

    Example:
        with Sandbox("print(int(input()) + 1)", ResourceLimits()) as sandbox:
            sandbox.run_program("41").output  # "42\n"

    Args:
        source: Python, of which nothing is trusted.
        limits: What it may use.

    Attributes:
        layers: What protects the machine.
    """

    def __init__(self, source: str, limits: ResourceLimits):
        self.layers: Layers = {"landlock": 0, "namespaces": "none"}
        self._source, self._limits = source, limits
        self._end = 0.0
        self._knows_tests = False

    def __enter__(self) -> "Sandbox":
        """Start the process.

        Raises:
            SandboxError: If it does not start, or a layer of protection is missing.
        """
        self._start()
        self._end = time.monotonic() + self._limits.total_seconds
        return self

    def _start(self) -> None:
        here = Path(__file__).parent
        self._process = subprocess.Popen(
            [*_PYTHON, "-c", _BOOT, str(os.getpid()), here.parent, here],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={"PYTHONHASHSEED": "0"},  # the order of a set must not change from run to run
            cwd="/",
            start_new_session=True,
        )
        try:
            files, listed = readable_paths()
            setup = {"files": files, "listed": listed, "memory_bytes": self._limits.memory_mb << 20}
            source = self._source.encode(errors="replace")
            holds, _ = self._exchange(setup, source, _GRACE_S)
            self.layers = {"landlock": holds["landlock"], "namespaces": holds["namespaces"]}
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        """Kill the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def run_program(self, text: str) -> Execution:
        """Run the source as a program with this standard input."""
        return self._run({}, text.encode(errors="replace"))

    def call(self, name: str, arguments: Sequence[object]) -> Execution:
        """Run the source, then call its function (or method of its class `Solution`) of this name."""
        return self._run({"name": name, "arguments": plain.encode(list(arguments), _no_object)})

    def run_tests(self, statements: list[tuple[bool, str]], names: list[str]) -> list[str | None]:
        """Run statements that test the source, in order, in a process apart from it.

        The answer's process is there before anything of the tests leaves this one, so it inherits none of it.

        Args:
            statements: Whether each is a test, and its text; the others prepare.
            names: What the source defines; it is reached under these names only.

        Returns:
            For each test None, or why it failed.

        Raises:
            ValueError: If the tests need what a sandbox cannot give.
            SandboxError: If the sandbox itself failed.
        """
        self._forget_tests()
        left = max(0.0, self._end - time.monotonic())
        self._exchange({"serve": True, "cpu": max(1.0, left)}, b"", _GRACE_S)
        self._knows_tests = True
        job = {"tests": statements, "names": names, "statement_wall": 2 * self._limits.seconds}
        header, body = self._exchange(job | {"cpu": max(1.0, left), "wall": left}, b"", left + _GRACE_S)
        reports = [parse_json(line) for line in body[: header["report"]].decode().splitlines()]
        if reports and "unsupported" in reports[-1]:
            raise ValueError(reports[-1]["unsupported"])
        verdicts = [report["failed"] or None for report in reports]
        missing = sum(is_test for is_test, _ in statements) - len(verdicts)
        return verdicts + ["the total time limit was reached"] * missing

    def _run(self, job: frames.Header, stdin: bytes = b"") -> Execution:
        self._forget_tests()
        seconds = self._limits.seconds
        wall = min(2 * seconds, self._end - time.monotonic())
        if wall <= 0:
            return Execution("time", detail="the total time limit was reached")
        header, body = self._exchange(job | {"cpu": seconds, "wall": wall}, stdin, wall + _GRACE_S)
        output = body[header["report"] :].decode(errors="replace")
        used = header["cpu"]
        if header["why"]:
            return Execution(header["why"], output, detail=f"the limit of {header['why']}", seconds=used)
        if used > seconds or header["code"] == -signal.SIGXCPU:
            return Execution("time", output, detail=f"{used:.1f} s of processor time", seconds=used)
        if header["code"] < 0:
            return Execution("crash", output, detail=f"killed by signal {-header['code']}", seconds=used)
        try:
            report = parse_json(body[: header["report"]].decode() or "{}")
            if header["code"] != 0 or not isinstance(report, dict):
                detail = report["error"] if "error" in report else f"exit code {header['code']}"
                return Execution("error", output, detail=str(detail), seconds=used)
            if "name" not in job:
                return Execution("done", output, seconds=used)
            value = plain.decode(report["value"], _no_object)
        except (JsonError, ValueError, TypeError, KeyError, AttributeError):
            return Execution("error", output, detail="no readable value was returned", seconds=used)
        return Execution("done", output, value, seconds=used)

    def _forget_tests(self) -> None:
        """Take a new process where the one at hand has seen tests, which no answer's may inherit."""
        if self._knows_tests:
            self.__exit__()
            self._start()
            self._knows_tests = False

    def _exchange(self, header: frames.Header, body: bytes, seconds: float) -> tuple[frames.Header, bytes]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            frames.send(self._process.stdin.fileno(), header, body)
            answer = frames.receive(self._process.stdout.fileno(), time.monotonic() + seconds)
        except (OSError, EOFError, ValueError) as error:
            raise SandboxError(f"the sandbox's process was lost: {error}") from error
        if "failed" in answer[0]:
            raise SandboxError(f"code cannot be confined here: {answer[0]['failed']}")
        return answer


@functools.cache
def readable_paths() -> tuple[list[str], list[str]]:
    """List what Python needs to read in order to run: files and directories, and directories to list only.

    Installed packages are left out, and with them whatever lies beside them.
    """
    folders = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    files = [entry for folder in folders for entry in folder.iterdir() if entry.name not in _NOT_OURS]
    files += Path(sys.base_prefix, "lib").glob("*.so*")
    files += [path for name in _LIBRARIES if (path := Path(name)).exists()]
    return sorted(map(str, files)), sorted(map(str, folders))


def _no_object(value: object) -> NoReturn:
    raise TypeError(f"{type(value).__name__} is no plain data")
