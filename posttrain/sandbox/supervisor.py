"""The sandbox's own process: it runs none of the answer's code, and starts one confined child for each job.

It is a fresh interpreter without site-packages, environment or secrets: what it knows, its children can read
in their copy of its memory. Expected outputs never come here; tests, which hold some, come only once the
answer's process has been started, and from then on no process of the answer is started any more.
"""

import fcntl
import importlib
import os
import select
import signal
import time
from collections.abc import Callable

from posttrain.sandbox import confine, frames, judging, landlock, linux, objects, plain, program, stand_ins

#: Output beyond this ends the program.
MAX_OUTPUT = 16 << 20
#: What most answers import is loaded once, here, and not again in every child.
_PRELOADED = "bisect collections functools heapq itertools math random re string".split()
_SEALS = 0xF  # no writing, growing, shrinking or further sealing
_ABOVE = 64  # descriptors are moved up here before they take their places


class Supervisor:
    """Starts, feeds, watches and ends the children.

    Args:
        jobs: Pipe from which jobs come; its end is ours.
        setup: `source`, `files` and `listed` (what may be read) and `memory_bytes`.
        namespaces: What `confine.enter_namespaces` returned.
        serial: A number that no other sandbox has.
    """

    def __init__(self, jobs: int, setup: frames.Header, namespaces: str, serial: int):
        self._jobs, self._setup, self._namespaces, self._serial = jobs, setup, namespaces, serial
        self._rules = landlock.read_only(setup["files"], setup["listed"])
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._answer: tuple[int, int, int] | None = None
        self._knows_tests = False

    def perform(self, job: frames.Header, stdin: bytes) -> tuple[frames.Header, bytes]:
        """Run one job in new children and return how it ended, with its output and its report."""
        if "tests" in job:
            self._knows_tests = True
            return self._tests(job)
        if self._knows_tests:
            raise OSError("this process knows tests, so it starts no answer any more")
        source = self._setup["source"]
        if "serve" in job:
            self._serve(source, job["cpu"])
            return {}, b""
        if "name" in job:
            arguments = plain.decode(job["arguments"], int)
            task, output = lambda: program.call(source, job["name"], arguments), False
        else:
            task, output = lambda: program.load(source, "__main__"), True
        return self._watch(task, job, _sealed(stdin), [], output)

    def _serve(self, source: str, cpu_seconds: float) -> None:
        """Start the answer's process, to be asked by tests that are not here yet."""
        (request_r, request_w), (reply_r, reply_w) = os.pipe(), os.pipe()
        stdin = _sealed(b"")
        places = [stdin, self._null, self._null, self._null, request_r, reply_w]
        answer = self._start(lambda: objects.serve(source, 4, 5), places, cpu_seconds)
        for descriptor in (stdin, request_r, reply_w):
            os.close(descriptor)
        self._answer = answer, reply_r, request_w

    def _tests(self, job: frames.Header) -> tuple[frames.Header, bytes]:
        """Run tests in a process of their own, which can ask the answer's."""
        if self._answer is None:
            raise OSError("the answer's process comes before its tests")
        answer, reply_r, request_w = self._answer
        statements, names, seconds = job["tests"], job["names"], job["statement_wall"]
        try:
            task = lambda: judging.judge(statements, names, seconds, stand_ins.Link(4, 5))  # noqa: E731
            return self._watch(task, job, _sealed(b""), [reply_r, request_w], False)
        finally:
            self._answer = None
            os.kill(answer, signal.SIGKILL)
            os.waitpid(answer, 0)

    def _watch(
        self, task: Callable[[], object], job: frames.Header, stdin: int, more: list[int], output: bool
    ) -> tuple[frames.Header, bytes]:
        """Run a task to its end, its time limit or its limit of output."""
        (output_r, output_w), (report_r, report_w) = os.pipe(), os.pipe()
        child = self._start(
            task, [stdin, output_w if output else self._null, self._null, report_w, *more], job["cpu"]
        )
        for descriptor in (stdin, output_w, report_w, *more):
            os.close(descriptor)
        collected = {output_r: bytearray(), report_r: bytearray()}
        ended = os.pidfd_open(child)
        why = self._collect(collected, ended, time.monotonic() + job["wall"])
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        if not why:  # what was written just before the end; nobody is left who could write more
            why = self._collect(collected, -1, time.monotonic() + job["wall"])
        for descriptor in (output_r, report_r, ended):
            os.close(descriptor)
        seconds = usage.ru_utime + usage.ru_stime
        code = os.waitstatus_to_exitcode(status)
        header = {"why": why, "code": code, "cpu": seconds, "report": len(collected[report_r])}
        return header, bytes(collected[report_r] + collected[output_r])

    def _collect(self, collected: dict[int, bytearray], ended: int, deadline: float) -> str:
        """Read until the child ends, or all pipes are closed; "" or the limit that was passed."""
        waiting = select.poll()
        for descriptor in collected:
            waiting.register(descriptor, select.POLLIN)
        open_pipes = set(collected)
        if ended >= 0:
            waiting.register(ended, select.POLLIN)
            waiting.register(self._jobs, 0)  # says only that nobody wants the answer any more
        while open_pipes or ended >= 0:
            left = deadline - time.monotonic()
            ready = dict(waiting.poll(max(0.0, left) * 1000))
            if not ready or left <= 0:
                return "time"
            if self._jobs in ready:
                os._exit(0)
            for descriptor in open_pipes & set(ready):
                if data := os.read(descriptor, 1 << 16):
                    collected[descriptor] += data
                else:
                    waiting.unregister(descriptor)
                    open_pipes.discard(descriptor)
            if max(map(len, collected.values())) > MAX_OUTPUT:
                return "output"
            if ended in ready:
                return ""
        return ""

    def _start(self, task: Callable[[], object], descriptors: list[int], cpu_seconds: float) -> int:
        """Start a child that runs a task once every layer holds; where one does not, everything ends."""
        gate_r, gate_w = os.pipe()
        supervisor = os.getpid()
        child = os.fork()
        if child:
            os.close(gate_w)
            error = os.read(gate_r, 1000)
            os.close(gate_r)
            if error != b"confined":
                raise OSError(error.decode() or "a child ended before it was confined")
            return child
        code = 1
        try:
            places = [*descriptors, gate_w, self._rules]
            high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _ABOVE) for descriptor in places]
            for place, descriptor in enumerate(high):
                os.dup2(descriptor, place)
            gate, rules = len(descriptors), len(descriptors) + 1
            os.closerange(rules + 1, max(high) + 1)
            try:
                confine.confine(
                    rules,
                    supervisor,
                    self._namespaces,
                    self._serial,
                    cpu_seconds,
                    self._setup["memory_bytes"],
                )
            except OSError as error:
                os.write(gate, str(error).encode())
                os._exit(1)
            os.write(gate, b"confined")
            os.closerange(gate, rules + 1)
            code = program.run(task)
        finally:
            os._exit(code)


def main(parent: int) -> None:
    """Read the setup and then jobs from standard input, and answer each on standard output, until it ends."""
    confine.be_first_to_die()
    os.environ.clear()
    jobs, answers = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    serial = os.getpid()
    namespaces = confine.enter_namespaces()
    linux.die_with_parent(parent)
    if namespaces != "none":
        child = os.fork()
        if child:
            os.closerange(3, max(jobs, answers, null) + 1)
            os.waitpid(child, 0)
            os._exit(0)
        linux.die_with_parent(0)  # in a namespace of its own, its parent has no number
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    for name in _PRELOADED:
        importlib.import_module(name)
    forever = float("inf")
    try:
        setup, source = frames.receive(jobs, forever)
        supervisor = Supervisor(jobs, setup | {"source": source.decode()}, namespaces, serial)
        frames.send(answers, {"landlock": landlock.version(), "namespaces": namespaces})
        while True:
            frames.send(answers, *supervisor.perform(*frames.receive(jobs, forever)))
    except EOFError:
        os._exit(0)
    except OSError as error:
        frames.send(answers, {"failed": str(error)})
        os._exit(1)


def _sealed(data: bytes) -> int:
    """Make a file in memory that nobody can change, as standard input."""
    descriptor = os.memfd_create("stdin", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor
