"""Checks of the machine: memory, cores, GPUs and what the kernel offers to lock a process in."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil

from posttrain.doctor.finding import Finding
from posttrain.gpus import visible_gpus

GIB = 1024**3
CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_CONTROL_GROUPS = Path("/proc/self/cgroup")
#: Linux's landlock_create_ruleset, the same on every architecture; asked for its version by flag 1.
LANDLOCK_CREATE_RULESET = 444
#: unshare(CLONE_NEWUSER | CLONE_NEWNET), in a process of its own.
UNSHARE = (
    "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(ctypes.c_int(0x10000000 | 0x40000000)) != 0)"
)


def check_gpus() -> Finding:
    """Say which GPUs a run would use; none is fine."""
    listed = [
        gpu.name if gpu.memory is None else f"{gpu.name}, {gpu.memory / GIB:.1f} GiB"
        for gpu in visible_gpus()
    ]
    return Finding("GPUs", "ok", "; ".join(listed) or "none, models run on the CPU")


def check_shared_memory() -> Finding:
    """Check whether /dev/shm has room for Ray's object store, which is slow on disk."""
    try:
        free = psutil.disk_usage("/dev/shm").free / GIB  # noqa: S108  (the mount is what is looked at)
    except OSError:
        return Finding("shared memory", "ok", "no /dev/shm: Ray's object store is a temporary file")
    if free < 0.5:
        remedy = "free it (ls /dev/shm), or enlarge it; in a container: docker run --shm-size=1g"
        return Finding("shared memory", "warning", f"{free:.2f} GiB free in /dev/shm, 0.5 wanted", remedy)
    return Finding("shared memory", "ok", f"{free:.1f} GiB free in /dev/shm")


def control_group(*files: str) -> list[float]:
    """Return the numbers in the first of these control group files that is there; "max" is infinity."""
    for file in files:
        try:
            words = (CONTROL_GROUPS / file).read_text().split()
        except OSError:
            continue
        return [float("inf") if word == "max" else float(word) for word in words]
    return []


def memory_bytes() -> int:
    """Return how much memory this process may use: the machine's, or its container's or batch job's."""
    limits = control_group("memory.max", "memory/memory.limit_in_bytes")
    for group in _own_control_groups():
        limits += control_group(f"{group}/memory.max", f"memory/{group}/memory.limit_in_bytes")
    return int(min(psutil.virtual_memory().total, *limits, float("inf")))


def _own_control_groups() -> list[str]:
    """List this process's control group and those around it, as paths; a container sees its own as "/"."""
    try:
        lines = OWN_CONTROL_GROUPS.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            whole = Path(path.lstrip("/"))
            found += [str(group) for group in (whole, *whole.parents) if str(group) != "."]
    return found


def check_memory() -> Finding:
    """Check whether machine and container have the 8 GB of the CPU quickstart."""
    size = memory_bytes() / GIB
    if size < 7:
        remedy = "use a larger machine, or raise the container's limit"
        return Finding("memory", "warning", f"{size:.1f} GiB, 7 wanted", remedy)
    return Finding("memory", "ok", f"{size:.1f} GiB")


def usable_cores() -> float:
    """Return how many cores this process may use, after affinity and the container's quota."""
    cores = float(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    if quota := control_group("cpu.max"):
        cores = min(cores, quota[0] / quota[1])
    return cores


def check_cores() -> Finding:
    """Check whether there are the two cores of the quickstart, after affinity and the container's quota."""
    cores = usable_cores()
    if cores < 2:
        remedy = "the engine and the learner take turns and are slow: allow this container two cores"
        return Finding("cores", "warning", f"{cores:g}, 2 wanted", remedy)
    return Finding("cores", "ok", f"{cores:g}")


def check_waiting_threads() -> Finding:
    """Check whether idle OpenMP threads sleep: spinning ones ran up to 10 times slower on shared cores."""
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "PASSIVE" or visible_gpus():
        return Finding("OMP_WAIT_POLICY", "ok", policy or "not set, which is fine on a GPU machine")
    remedy = "export OMP_WAIT_POLICY=PASSIVE (the scripts do)"
    return Finding("OMP_WAIT_POLICY", "warning", f"{policy or 'not set'}: idle threads spin", remedy)


def landlock_version() -> int:
    """Return the version of the kernel's Landlock interface; 0 without it."""
    if sys.platform != "linux":
        return 0
    call = ctypes.CDLL(None, use_errno=True).syscall
    return max(0, call(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def check_sandbox() -> Finding:
    """Say what the kernel offers to lock up a process that runs untrusted code."""
    child = subprocess.run([sys.executable, "-I", "-S", "-c", UNSHARE], capture_output=True, check=False)
    features = {
        f"Landlock {landlock_version()}": landlock_version() > 0,
        "seccomp filters": Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        "user and network namespaces": sys.platform == "linux" and child.returncode == 0,
    }
    there = [feature for feature, present in features.items() if present]
    absent = [feature.removesuffix(" 0") for feature, present in features.items() if not present]
    if absent:
        detail = f"no {', no '.join(absent)} (there: {', '.join(there) or 'nothing'})"
        remedy = f"isolation is weaker; a container may forbid what kernel {platform.release()} has"
        return Finding("sandbox", "warning", detail, remedy)
    return Finding("sandbox", "ok", ", ".join(there))
