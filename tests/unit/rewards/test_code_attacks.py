"""Hostile answers to code tasks: none of them earns anything, and none of them touches a canary."""

import contextlib
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from posttrain.sandbox import probe
from posttrain.types import RewardInput
from rewards.builtin.code import code

SECRET = "canary-7f3a91"
#: What an attack that succeeds prints; the tests expect exactly this, so success would earn the reward.
PRELUDE = """
import ctypes, os, resource, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
folder, port, victim, parent = {folder!r}, {port}, {victim}, {parent}
def won(): print({secret!r}, flush=True); os._exit(0)
def tries(*actions):
    for action in actions:
        try: action()
        except BaseException as error: print(type(error).__name__, file=sys.stderr)
        else: won()
"""
ATTACKS = {
    "fork bomb": "for _ in range(9999): tries(os.fork)",
    "fork by number": """
for n in (57, 58, 56, 435):
  if libc.syscall(n, 17, 0, 0, 0, 0) >= 0: won()
""",
    "thread bomb": """
event = threading.Event()
threading.stack_size(1 << 15)
started = 0
try:
    for started in range(5000): threading.Thread(target=event.wait, daemon=True).start()
finally:
    if started > 200: won()
    os._exit(1)
""",
    "double fork": "tries(os.forkpty, lambda: os.posix_spawn('/bin/sh', ['sh', '-c', 'true'], {}))",
    "subprocess": """
import subprocess
tries(lambda: subprocess.run(['/bin/sh', '-c', f'touch {folder}/pwn']))
""",
    "exec": "tries(lambda: os.execv('/bin/sh', ['sh', '-c', f'touch {folder}/pwn; echo canary-7f3a91']))",
    "os.system": "if os.system(f'touch {folder}/pwn') == 0: won()",
    "many files": "tries(lambda: [os.dup(0) for _ in range(100000)])",
    "disk fill": """
for place in (folder, '/tmp', '/dev/shm', '/var/tmp', '.', os.path.expanduser('~'), '/run'):
    tries(lambda: open(place + '/canary-pwn', 'wb').write(b'x' * (1 << 20)))
tries(lambda: os.mkfifo(folder + '/pwn'), lambda: os.mkdir(folder + '/pwn'),
      lambda: os.symlink('/etc/passwd', folder + '/pwn'), lambda: os.unlink(folder + '/secret'),
      lambda: os.rename(folder + '/secret', folder + '/pwn'), lambda: os.truncate(folder + '/secret', 0),
      lambda: os.chmod(folder + '/secret', 0), lambda: os.utime(folder + '/secret'),
      lambda: os.link(folder + '/secret', folder + '/pwn'))
""",
    "memory in a file": "tries(lambda: os.memfd_create('x'), lambda: os.truncate(0, 1 << 30))",
    "memory fill": """
held = []
while True: held.append(bytearray(1 << 24))
""",
    "memory by mmap": """
import mmap
tries(lambda: mmap.mmap(-1, 1 << 33))
""",
    "System V memory": "if libc.shmget(0, 1 << 20, 0o1600) >= 0: won()",
    "raise the limits": """
for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    tries(lambda: resource.setrlimit(which, (1 << 40, 1 << 40)))
    tries(lambda: resource.prlimit(victim, which, (0, 0)))
""",
    "kill everything": """
tries(lambda: os.kill(-1, 9), lambda: os.killpg(0, 9))
while True: pass
""",
    "kill one": """
for pid in (victim, parent, os.getppid(), 1):
  tries(lambda: os.kill(pid, 9))
""",
    "kill by number": """
for pid in (victim, parent, 1):
    calls = {62: (pid, 9), 234: (pid, pid, 9), 200: (pid, 9), 129: (pid, 9, 0), 434: (pid, 0)}
    for number, arguments in calls.items():
        if libc.syscall(number, *arguments) >= 0: won()
""",
    "signal through a pipe": """
import fcntl
r, w = os.pipe()
tries(lambda: fcntl.fcntl(r, fcntl.F_SETOWN, victim), lambda: fcntl.fcntl(r, 10, signal.SIGKILL),
      lambda: fcntl.ioctl(r, 0x8901, victim.to_bytes(4, 'little')))
""",
    "ptrace": """
calls = {101: (16, victim, 0, 0), 310: (victim, 0, 0, 0, 0, 0)}
for number, arguments in calls.items():
    if libc.syscall(number, *arguments) >= 0: won()
""",
    "sockets": """
import socket
tries(lambda: socket.create_connection(('127.0.0.1', port), 1), socket.socketpair,
      lambda: socket.socket(socket.AF_UNIX), lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
for family in range(46):
    if libc.socket(family, 2, 0) >= 0: won()
""",
    "url": """
import urllib.request
tries(lambda: urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=1))
""",
    "environment": """
if os.environ.get('CODE_CANARY') or libc.getenv(b'CODE_CANARY'): won()
if dict(os.environ): won()
""",
    "read the secret": """
around = folder + '/../' + os.path.basename(folder) + '/secret'
for path in (folder + '/secret', around, '/etc/passwd', '/proc/self/environ'):
    tries(lambda: open(path).read())
tries(lambda: os.listdir(folder), lambda: os.listdir('/'), lambda: os.listdir('/root'))
""",
    "read by descriptor": """
for n in range(3, 300):
    try: data = os.read(n, 1000)
    except OSError: continue
    if data: won()
""",
    "/proc of others": """
for name in ('environ', 'mem', 'maps', 'root/etc/passwd'):
    tries(lambda: open(f'/proc/self/{name}', 'rb').read(1))
own = int(os.readlink('/proc/self'))  # its own standard input stays open to it, by whatever name
for pid in {parent, victim, os.getppid(), *range(1, 500)} - {own}:
    for name in ('environ', 'cmdline', 'mem', 'maps', 'fd/0', 'fd/1', 'root/etc/passwd', 'cwd'):
        tries(lambda: open(f'/proc/{pid}/{name}', 'rb').read(1))
    tries(lambda: os.listdir(f'/proc/{pid}/fd'))
""",
    "kernel doors": """
doors = {
    'mount': 165, 'unshare': 272, 'setns': 308, 'bpf': 321, 'perf_event_open': 298, 'io_uring_setup': 425,
    'kexec_load': 246, 'userfaultfd': 323, 'keyctl': 250, 'setuid': 105, 'setresuid': 117, 'chroot': 161,
    'pivot_root': 155, 'process_vm_writev': 311, 'personality': 135, 'init_module': 175, 'setsid': 112,
    'open_by_handle_at': 304, 'landlock_create_ruleset': 444, 'execveat': 322, 'reboot': 169,
}
for number in doors.values():
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) >= 0: won()
""",
    "undo protection": """
for option in (1, 4, 22, 38):
  if libc.prctl(option, 0, 0, 0, 0) >= 0: won()
""",
    "x32 numbers": """
libc.syscall(0x40000000 + 39)
won()
""",
    "no end": "while True: pass",
    "no end, signals ignored": """
for s in range(1, 64):
  try: signal.signal(s, signal.SIG_IGN)
  except OSError: pass
while True: pass
""",
    "sleep": "time.sleep(3600)",
    "a thread that stays": "threading.Thread(target=lambda: time.sleep(3600)).start()",
    "a gigabyte of output": """
block = 'x' * (1 << 20)
for _ in range(1024): print(block)
""",
    "a gigabyte by descriptor": """
block = b'x' * (1 << 20)
for _ in range(1024): os.write(1, block)
""",
    "crash": "ctypes.string_at(0)",
    "parser bomb": "eval('(' * 100000)",
    "deep recursion": """
sys.setrecursionlimit(10**9)
def f(n): return sorted([1, 2], key=lambda _: f(n + 1))
f(0)
""",
    "forged report": 'os.write(3, b\'{"value": "canary-7f3a91"}\\n\'); os._exit(0)',
    "search of memory": """
import gc
for thing in gc.get_objects():
    if isinstance(thing, (list, tuple)) and thing and thing[0] == 'canary-' + '7f3a91': won()
frame = sys._getframe()
while frame:
    if 'expected' in frame.f_locals or 'outputs' in frame.f_locals: won()
    frame = frame.f_back
""",
    "compiler's memory": "exec('a = ' + '-' * 10**6 + '1')",
}


@pytest.fixture
def canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A file, an environment variable, a socket and a process, none of which may be touched."""
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("CODE_CANARY", SECRET)
    victim = subprocess.Popen(["sleep", "600"])
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    stat = (tmp_path / "secret").stat()
    places = [Path(place) for place in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/", Path.home(), Path.cwd())]
    before = psutil.Process().memory_info().rss
    family = psutil.Process().children()  # those of this test session, such as a Ray cluster
    yield {
        "folder": str(tmp_path),
        "port": listener.getsockname()[1],
        "victim": victim.pid,
        "parent": os.getpid(),
    }
    assert victim.poll() is None, "the process was killed"
    with pytest.raises(BlockingIOError):
        listener.accept()
    after = (tmp_path / "secret").stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (
        stat.st_mode,
        stat.st_mtime_ns,
        stat.st_nlink,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert not [place for place in places if (place / "canary-pwn").exists()]
    assert psutil.Process().memory_info().rss - before < 200 << 20
    victim.kill()
    victim.wait()
    listener.close()
    assert set(psutil.Process().children()) <= set(family), "something outlived its sandbox"


def score(source: str, truth: Any, **params: Any) -> float:
    result = code(RewardInput((), (), f"```python\n{source}\n```", ground_truth=truth), **params)
    assert result is not None
    return result.value


#: These call the kernel by the numbers of x86_64.
BY_NUMBER = {"fork by number", "kill by number", "ptrace", "kernel doors", "x32 numbers"}


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_touched(name: str, canaries: dict[str, Any]) -> None:
    if name in BY_NUMBER and platform.machine() != "x86_64":
        pytest.skip("calls by the numbers of x86_64")
    names = canaries | {"secret": SECRET}
    source = PRELUDE.format(**names) + ATTACKS[name].replace("{secret!r}", repr(SECRET))
    begun = time.monotonic()
    assert score(source, {"inputs": [""], "outputs": [SECRET]}, seconds=1.5) == 0.0
    assert time.monotonic() - begun < 15


def test_an_attack_that_would_succeed_is_noticed(canaries: dict[str, Any]) -> None:
    source = PRELUDE.format(**canaries, secret=SECRET) + "tries(lambda: 1)"
    assert score(source, {"inputs": [""], "outputs": [SECRET]}) == 1.0


def test_the_sandbox_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "from posttrain.sandbox import *\nimport os\n"
        "with Sandbox('while True: pass', ResourceLimits(30, 40)) as s:\n"
        "    print(s._process.pid, flush=True)\n    s.run_program('')"
    )
    python = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert python.stdout is not None
    sandbox = psutil.Process(int(python.stdout.readline()))
    time.sleep(0.3)
    family = [sandbox, *sandbox.children(recursive=True)]
    assert len(family) >= 2
    python.kill()
    python.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    with contextlib.suppress(psutil.NoSuchProcess):
        alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert alive == []


def test_the_probe_names_its_layers() -> None:
    assert probe()["landlock"] >= 1
