"""How a process gives up its privileges, step by step; a step that fails is an OSError, and nothing runs."""

import contextlib
import math
import os
import resource

from posttrain.sandbox import landlock, linux, seccomp

#: Threads that one program may have.
MAX_THREADS = 32
MAX_OPEN_FILES = 64
_STACK_BYTES = 64 << 20
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
_UNUSED_USERS = 0x70000000  # user numbers that no system gives to anybody


def enter_namespaces() -> str:
    """Leave the machine's processes, network and shared memory behind, where that is allowed.

    The processes are left by the next child, not by this one. Nothing depends on it: Landlock and seccomp
    forbid the same things.

    Returns:
        "root", "user" (within a user namespace of its own) or "none".
    """
    with contextlib.suppress(OSError):
        linux.unshare(_CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC)
        return "root"
    user, group = os.geteuid(), os.getegid()
    try:
        linux.unshare(_CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC)
    except OSError:
        return "none"
    with contextlib.suppress(OSError):  # without names the namespace isolates all the same
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    return "user"


def be_first_to_die() -> None:
    """Let the kernel end this process and its children before any other where memory runs out."""
    with contextlib.suppress(OSError):
        _write("/proc/self/oom_score_adj", "1000")


def confine(
    rules: int, parent: int, namespaces: str, serial: int, cpu_seconds: float, memory_bytes: int
) -> None:
    """Put this process under limits, Landlock and seccomp, in that order and for good.

    Args:
        rules: What Landlock allows, from `landlock.read_only`.
        parent: Number of the process with which this one dies.
        namespaces: What `enter_namespaces` returned.
        serial: A number that no other sandbox has.
        cpu_seconds: Processor time after which the kernel kills it.
        memory_bytes: Size of its address space.

    Raises:
        OSError: If a layer cannot be set up.
    """
    threads = MAX_THREADS if _own_user(serial) or namespaces == "user" else _threads_of_user() + MAX_THREADS
    _limit(resource.RLIMIT_NPROC, threads)
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_STACK, _STACK_BYTES)
    _limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    for nothing in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK):
        _limit(nothing, 0)
    seconds = math.ceil(cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.die_with_parent(parent)
    landlock.restrict(rules)
    seccomp.install()


def _own_user(serial: int) -> bool:
    """Become a user of one's own in the kernel's count of threads, which never limits root.

    Root's files stay readable, because the effective user, which decides that, stays root.
    """
    if os.geteuid() != 0:
        return False
    try:
        os.setresuid(_UNUSED_USERS + serial, -1, -1)
    except OSError:
        return False
    return True


def _threads_of_user() -> int:
    """Count the threads that this user has already, all of which the kernel counts."""
    total, user = 0, os.getuid()
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208  # pathlib is slow to load
        with contextlib.suppress(OSError):
            status = os.stat(f"/proc/{name}/task")  # noqa: PTH116
            total += status.st_nlink - 2 if status.st_uid == user else 0
    return total


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
