"""Calls of Linux that Python's `os` does not offer; every failure is an OSError."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: object) -> int:
    """Call the kernel by number; integers are passed as 64 bits."""
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words))


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process that takes one number."""
    _checked(_libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(), ctypes.c_ulong(), ctypes.c_ulong()))


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, even inside a C function that hangs.

    Where the parent has ended already, this process ends at once.

    Args:
        parent: The parent's number, as its child knows it; None where it is not known, and only a parent
            that has been replaced by the first process of the system counts as ended.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    now = os.getppid()
    if now == 1 if parent is None else now != parent:
        os._exit(1)


def unshare(flags: int) -> None:
    """Leave the namespaces named by CLONE_NEW… flags for new ones."""
    _checked(_libc.unshare(flags))


def drop_capabilities() -> None:
    """Give up every privilege of root but that of owning root's files."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
