"""Does the sandbox hold on this machine? Harmless attempts, each of which must fail."""

import functools
import sys
import tempfile
from pathlib import Path

from posttrain.sandbox.runner import Layers, ResourceLimits, Sandbox, SandboxError

_LIMITS = ResourceLimits(seconds=5.0, total_seconds=20.0, memory_mb=512)
#: Each attempt succeeds where its own layer, and no other, is missing: Landlock for files, seccomp for
#: processes and sockets, limits for the rest.
_CANARY = """
import os, socket, threading

def start_a_process():
    if os.fork() == 0:
        os._exit(0)

def start_many_threads():
    threading.stack_size(1 << 15)  # so that memory is not what stops them
    done = threading.Event()
    try:
        for _ in range(200):
            threading.Thread(target=done.wait).start()
    finally:
        done.set()

def attempts(folder, megabytes):
    tried = {
        "read a file": lambda: open(folder + "/readable").read(),
        "list a directory": lambda: os.listdir(folder),
        "write a file": lambda: open(folder + "/written", "w"),
        "read of other processes": lambda: open(f"/proc/{os.getppid()}/stat").read(),
        "signal a process": lambda: os.kill(os.getppid(), 0),
        "open a socket": socket.socket,
        "start a process": start_a_process,
        "start many threads": start_many_threads,
        "take more memory": lambda: bytearray(megabytes << 20),
        "open many files": lambda: [os.dup(0) for _ in range(1000)],
    }
    return {name: succeeds(attempt) for name, attempt in tried.items()}

def succeeds(attempt):
    try:
        attempt()
    except (OSError, MemoryError, RuntimeError):
        return False
    return True
"""


class SandboxMissing(SandboxError):
    """This machine cannot confine untrusted code, so none is run."""


@functools.cache
def probe() -> Layers:
    """Try what confined code must not be able to do; once a process, in about a tenth of a second.

    Raises:
        SandboxMissing: If a layer is missing or does not hold, with what it let through.
    """
    remedy = "the code reward needs Linux 5.13 or newer on x86_64 or aarch64, with Landlock and seccomp"
    if sys.platform != "linux":
        raise SandboxMissing(f"no sandbox on {sys.platform}: {remedy}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "readable").write_text("canary")
        try:
            with Sandbox(_CANARY, _LIMITS) as sandbox:
                outcome = sandbox.call("attempts", [folder, 2 * _LIMITS.memory_mb])
        except (SandboxError, OSError) as error:
            raise SandboxMissing(f"no sandbox here: {error}; {remedy}") from error
        written = Path(folder, "written").exists()
    if outcome.status != "done" or not isinstance(outcome.value, dict) or len(outcome.value) != 10:
        raise SandboxMissing(f"the sandbox's trial did not finish ({outcome.status}: {outcome.detail})")
    outcome.value["write a file"] |= written
    through = [name for name, succeeded in outcome.value.items() if succeeded]
    if through:
        raise SandboxMissing(f"the sandbox does not hold: confined code could {', '.join(through)}; {remedy}")
    return sandbox.layers
