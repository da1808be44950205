"""Runs a server, and ends it with all that it has started; a program of its own, and the standard library's.

`python supervisor.py LIFELINE COMMAND ARGUMENT…` runs the command with its own standard streams. LIFELINE is
the number of a pipe's reading end. When the other end is closed, by whoever started this or by that one's
death, or when the command ends, every descendant is killed, also one that left the group or lost its parent.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
#: Seconds between the request to end and the end.
GRACE_S = 0.5
#: What a shell returns where a command cannot be started.
NOT_STARTED = 127


def main(lifeline: int, command: list[str]) -> int:
    """Run a command until it ends or nobody wants it; return its exit code."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.close(lifeline)
        try:
            os.execvp(command[0], command)  # noqa: S606  # what it is for
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(NOT_STARTED)
    for stream in (0, 1):  # so that whoever reads sees the server's end, and not ours
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    ended = os.pidfd_open(child)
    waiting = select.poll()
    waiting.register(lifeline, select.POLLIN)
    waiting.register(ended, select.POLLIN)
    if ended not in dict(waiting.poll()):
        os.kill(child, signal.SIGTERM)
        select.select([ended], [], [], GRACE_S)
    return _end(child)


def _end(child: int) -> int:
    """Kill every descendant; return the exit code of the first."""
    code = NOT_STARTED
    while True:
        for process in _children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            process, status = os.wait()  # the children of a killed one are ours next
        except ChildProcessError:
            return code
        if process == child:
            code = os.waitstatus_to_exitcode(status)


def _children(process: int) -> list[int]:
    """List the children of a process."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                after_name = (folder / "stat").read_bytes().rpartition(b")")[2].split()
                found += [int(folder.name)] * (int(after_name[1]) == process)
    return found


if __name__ == "__main__":
    exit_code = main(int(sys.argv[1]), sys.argv[2:])
    os._exit(exit_code if exit_code >= 0 else 128 - exit_code)
