"""Landlock: the kernel's allow-list of files for this process and all that it starts.

Source: Linux, Documentation/userspace-api/landlock.rst. Needs Linux 5.13; newer kernels cover more.
"""

import ctypes
import os
import stat
from collections.abc import Sequence

from posttrain.sandbox import linux

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_ASK_VERSION = 1
_RULE_PATH_BENEATH = 1

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
#: Rights over files that version 1, 2, … of the interface knows: all but the last few are in each.
_FILE_RIGHTS = [(1 << bits) - 1 for bits in (13, 14, 15, 15, 16)]
_TCP_RIGHTS = 0b11  # bind and connect, from version 4
_SCOPES = 0b11  # abstract sockets and signals, from version 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


def version() -> int:
    """Ask for the version of the interface, from 1 up.

    Raises:
        OSError: If the kernel has no Landlock, or was started without it.
    """
    return linux.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)


def read_only(files: Sequence[str], listed: Sequence[str]) -> int:
    """Make a set of rules that allows nothing but reading, as a file descriptor for `restrict`.

    Args:
        files: Files, and directories with all that is beneath them, that may be read.
        listed: Directories of which only the names may be listed.

    Raises:
        OSError: If the kernel has no Landlock, or refuses a rule.
    """
    known = version()
    attributes = _Ruleset(_FILE_RIGHTS[min(known, len(_FILE_RIGHTS)) - 1], _TCP_RIGHTS, _SCOPES)
    size = 8 if known < 4 else 16 if known < 6 else 24
    rules = linux.syscall(_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    for path in files:
        _allow(rules, path, _READ_FILE | _READ_DIR)
    for path in listed:
        _allow(rules, path, _READ_DIR)
    return rules


def restrict(rules: int) -> None:
    """Put this process under the rules, for good; needs PR_SET_NO_NEW_PRIVS.

    Raises:
        OSError: If the kernel refuses.
    """
    linux.syscall(_RESTRICT_SELF, rules, 0)


def _allow(rules: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= ~_READ_DIR  # the kernel refuses it for a file
        rule = _PathRule(rights, descriptor)
        linux.syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)
