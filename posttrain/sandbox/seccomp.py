"""Seccomp: the short list of kernel calls that a Python program needs to compute, and no others.

Not on the list, hence refused with EPERM: every socket, signal to a process (kill, tgkill, pidfd_send_signal,
also by way of fcntl and ioctl), fork, exec, ptrace, process_vm_*, mount, namespaces, change of user, kexec,
bpf, perf_event_open, io_uring, keyctl, memfd_create, System V memory, and whatever later kernels add.
A call by another architecture's numbers (32-bit, x32) ends the process.

Source: Linux, Documentation/userspace-api/seccomp_filter.rst; the list itself is ours.
"""

import ctypes
import errno
import os
import struct

from posttrain.sandbox import linux

_SET_MODE_FILTER = 1
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000

#: Machine: (AUDIT_ARCH_…, number of seccomp(2), column of the tables below).
_MACHINES = {"x86_64": (0xC000003E, 317, 0), "aarch64": (0xC00000B7, 277, 1)}

#: Numbers on x86_64 and aarch64; None where the call does not exist.
ALLOWED: dict[str, tuple[int, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "pipe": (22, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "pause": (34, None),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "readlink": (89, None),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getgroups": (115, 158),
    "sigaltstack": (131, 132),
    "arch_prctl": (158, None),
    "setrlimit": (160, 164),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "statx": (332, 291),
    "rseq": (334, 293),
    "close_range": (436, 436),
    "faccessat2": (439, 439),
}
#: Calls that are allowed for some values of one argument: (numbers), argument, mask, values.
#: clone: exactly the flags with which C libraries start a thread (musl adds CLONE_DETACHED, masked out).
#: fcntl: not F_SETOWN and its like, which send signals. ioctl: TCGETS, FIONCLEX, FIOCLEX, FIONREAD.
#: prlimit64: only one's own limits. prctl: only the thread's name.
FILTERED: dict[str, tuple[tuple[int, int], int, int, tuple[int, ...]]] = {
    "clone": ((56, 220), 0, ~0x400000 & 0xFFFFFFFF, (0x3D0F00,)),
    "fcntl": ((72, 25), 1, 0xFFFFFFFF, (0, 1, 2, 3, 4, 1030)),
    "ioctl": ((16, 29), 1, 0xFFFFFFFF, (0x5401, 0x5450, 0x5451, 0x541B)),
    "prctl": ((157, 167), 0, 0xFFFFFFFF, (15, 16)),
    "prlimit64": ((302, 261), 0, 0xFFFFFFFF, (0,)),
}
#: Newer form of clone whose flags a filter cannot see; ENOSYS makes C libraries use the older one.
CLONE3 = 435


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install() -> None:
    """Put this process, and every thread it starts, under the filter for good; needs PR_SET_NO_NEW_PRIVS.

    Raises:
        OSError: If the machine is neither x86_64 nor aarch64, or its kernel refuses the filter.
    """
    machine = machine_name()
    code = program(machine)
    instructions = ctypes.create_string_buffer(code)
    filter_ = _Program(len(code) // 8, ctypes.addressof(instructions))
    linux.syscall(_MACHINES[machine][1], _SET_MODE_FILTER, 0, ctypes.byref(filter_))


def machine_name() -> str:
    """Return the architecture of this process.

    Raises:
        OSError: If there is no list of kernel calls for it.
    """
    machine = os.uname().machine
    if machine not in _MACHINES or struct.calcsize("P") != 8:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {machine}, only for {', '.join(_MACHINES)}")
    return machine


def program(machine: str) -> bytes:
    """Write the filter as machine code for the kernel's classic BPF.

    Every test is followed by its verdict, so no jump is longer than one argument's block.
    """
    architecture, _, column = _MACHINES[machine]
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, 0, 1),
        _step(_RETURN, _KILL_PROCESS),
    ]
    for numbers in ALLOWED.values():
        number = numbers[column]
        if number is not None:
            code += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    for numbers, argument, mask, values in FILTERED.values():
        block = [_step(_LOAD, _ARGUMENT + 8 * argument), _step(_AND, mask)]
        for value in values:
            block += [_step(_EQUAL, value, 0, 1), _step(_RETURN, _ALLOW)]
        block.append(_step(_RETURN, _ERRNO | errno.EPERM))
        code += [_step(_EQUAL, numbers[column], 0, len(block)), *block]
    code += [_step(_EQUAL, CLONE3, 0, 1), _step(_RETURN, _ERRNO | errno.ENOSYS)]
    code.append(_step(_RETURN, _ERRNO | errno.EPERM))
    return b"".join(code)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Pack one `struct sock_filter`; both machines are little-endian."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
