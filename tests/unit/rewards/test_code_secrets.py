"""Answers that look for their tests' expectations, wherever a process could find them: none of them does."""

from typing import Any

import pytest

from posttrain.sandbox import ResourceLimits, Sandbox
from posttrain.types import RewardInput, text_message
from rewards.builtin.code import code
from rewards.manager import RewardSpec
from rewards.workers.scorer import Scorer

SECRET = 730_118_254_961
#: `f` returns what follows a call of its own in any text that `places` yields.
PRELUDE = """
import ctypes, gc, os, re, select, signal, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def texts(thing, depth=3):
    if isinstance(thing, str): yield thing.encode(errors='replace')
    elif isinstance(thing, (bytes, bytearray)): yield bytes(thing)
    elif depth and isinstance(thing, (list, tuple, set, frozenset)):
        for item in list(thing): yield from texts(item, depth - 1)
    elif depth and isinstance(thing, dict):
        for pair in list(thing.items()): yield from texts(pair, depth - 1)
    elif depth and type(thing) is type(f.__code__): yield from texts(thing.co_consts, depth - 1)
def tried(*actions):
    for action in actions:
        try: yield from texts(action())
        except Exception: pass
def read(path, size=1 << 22):
    with open(path, 'rb', 0) as file: return file.read(size)
def fields(frame):
    while frame:
        yield from texts(frame.f_locals)
        yield from texts(frame.f_globals, 4)
        yield from texts(frame.f_code)
        frame = frame.f_back
def copied(address, size=4096):
    # The kernel says which addresses there are: writing from one that is not there is an error, not a crash.
    r, w = os.pipe()
    try: return os.read(r, size) if libc.write(w, ctypes.c_void_p(address), size) == size else b''
    finally: os.close(r); os.close(w)
LOOKING = re.compile(rb'(?:f|candidate)\\W{0,3}3\\W*==\\W*([0-9]{12})|outputs\\W*([0-9]{12})|^([0-9]{12})$')
seen = []
def look():
    for text in places():
        for match in LOOKING.finditer(text):
            seen.append(int(next(filter(None, match.groups()))))
def f(x):
    look()
    return seen[0] if seen else None
"""
PLACES = {
    "garbage collector": "return (t for o in gc.get_objects() for t in texts(o))",
    "referrers": "return (t for o in gc.get_referrers(*gc.get_objects()[:2000]) for t in texts(o))",
    "everything loaded": "return (t for m in list(sys.modules.values()) for t in texts(vars(m), 4))",
    "frames": "return fields(sys._getframe())",
    "frames of all threads": "return (t for frame in sys._current_frames().values() for t in fields(frame))",
    "traceback": """
  try: 1 / 0
  except ZeroDivisionError as error: trace = error.__traceback__
  while trace.tb_next: trace = trace.tb_next
  return fields(trace.tb_frame)
""",
    "inspect": "import inspect; return (t for i in inspect.stack() for t in fields(i.frame))",
    "memory around every object": """
  pages = sorted({(id(o) + d) & ~4095 for o in gc.get_objects() for d in range(-1 << 14, 1 << 14, 4096)})
  return map(copied, pages[:60_000])
""",
    "the heap from its end down": """
  libc.sbrk.restype = ctypes.c_void_p
  top = libc.sbrk(0) & ~4095
  return (copied(top - 4096 * i) for i in range(20_000))
""",
    "what malloc gives back": """
  libc.malloc.restype = ctypes.c_void_p
  return [ctypes.string_at(libc.malloc(size), size) for size in (100, 1000, 5000, 70_000) for _ in range(200)]
""",
    "stack": """
  here = ctypes.addressof(ctypes.c_int()) & ~4095
  libc.environ = ctypes.c_void_p.in_dll(libc, 'environ').value or here
  return (copied((libc.environ & ~4095) + 4096 * i) for i in range(-500, 500))
""",
    "memory by /proc": """
  ids = ['self', 'thread-self', os.getppid(), *range(1, 200)]
  names = 'mem maps environ cmdline stat syscall stack auxv pagemap fd/0 fd/4 fd/5'.split()
  return tried(*(lambda i=i, n=n: read(f'/proc/{i}/{n}') for i in ids for n in names))
""",
    "memory of another process": """
  class Vec(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]
  mine, out = ctypes.create_string_buffer(1 << 16), []
  for pid in (os.getppid(), *range(1, 60)):
    for base in (id(f) & ~0xffff, 0x400000):
      local, remote = Vec(ctypes.addressof(mine), 1 << 16), Vec(base, 1 << 16)
      read = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
      if read > 0: out.append(mine.raw)
    if libc.ptrace(16, pid, 0, 0) == 0: out.append(b'attached')
  return out
""",
    "descriptors": """
  out = []
  for n in range(256):
    try: ready = n == 0 or select.select([n], [], [], 0)[0]
    except (OSError, ValueError): continue
    try: out.append(os.read(n, 1 << 16) if ready else b'')
    except OSError: pass
    try: out.append(os.pread(n, 1 << 16, 0))
    except OSError: pass
  return out
""",
    "files": """
  def walk():
    for folder in ('/tmp', '/dev/shm', '/var/tmp', '/run', '.', os.path.expanduser('~'), '/proc'):
      try: names = os.listdir(folder)
      except OSError: continue
      yield from tried(*(lambda n=n: read(folder + '/' + n) for n in names))
  return walk()
""",
    "environment": """
  libc.getenv.restype = ctypes.c_char_p
  return tried(lambda: dict(os.environ), lambda: [*sys.argv, *sys.orig_argv], lambda: libc.getenv(b'TESTS'))
""",
    "shared memory": """
  from multiprocessing import shared_memory
  libc.shmat.restype = ctypes.c_void_p
  return tried(*(lambda k=k: ctypes.string_at(libc.shmat(libc.shmget(k, 0, 0), 0, 0), 1) for k in range(50)),
               lambda: shared_memory.SharedMemory('tests').buf.tobytes())
""",
    "sockets": """
  import socket
  def name():
    with socket.socket(socket.AF_UNIX) as s:
      s.connect('\\0tests'); return s.recv(1 << 16)
  return tried(name, lambda: socket.socketpair()[0].recv(1),
               lambda: socket.create_connection(('127.0.0.1', 80), 1))
""",
    "a new process": """
  import subprocess
  return tried(lambda: subprocess.run(['cat', '/proc/self/cmdline'], capture_output=True).stdout,
               lambda: os.fork() and b'', lambda: libc.vfork() and b'',
               lambda: os.execv('/bin/ps', ['ps', 'aux']),
               lambda: os.posix_spawn('/bin/ps', ['ps'], {}) and b'')
""",
    "what faulthandler prints": """
  import faulthandler
  r, w = os.pipe()
  faulthandler.dump_traceback(w, all_threads=True)
  os.close(w)
  return [os.read(r, 1 << 16)]
""",
    "source lines": """
  import linecache
  return tried(lambda: linecache.getlines('tests.py'), lambda: linecache.cache, lambda: read('tests.py'))
""",
}  # fmt: skip
#: These set a trap when the answer is loaded, and look at what it caught when called.
TRAPS = {
    "audit hook": "sys.addaudithook(lambda name, given: caught.append(repr(given)))",
    "trace": """
def trace(frame, *_):
  caught.append(repr(frame.f_locals)[:10_000])
  return trace
sys.settrace(trace); threading.settrace(trace)
frame = sys._getframe()
while frame: frame.f_trace, frame = trace, frame.f_back
""",
    "patched readers": """
import json
def spy(function):
  def spied(*a, **k):
    value = function(*a, **k)
    caught.append(repr((a, k, value))[:100_000])
    return value
  return spied
json.loads, os.read = spy(json.loads), spy(os.read)
for module in list(sys.modules.values()):
  for name in ('receive', 'send', 'decode', 'encode', 'load_functions', '_read'):
    if callable(getattr(module, name, None)): setattr(module, name, spy(getattr(module, name)))
""",
    "patched builtins": """
import builtins
for name in ('compile', 'exec', 'eval', 'getattr', 'isinstance', 'zip', 'dict', 'list'):
  def spied(*a, function=getattr(builtins, name), **k):
    caught.append(str(a)[:1000] if a and type(a[0]) in (str, list, dict) else '')
    return function(*a, **k)
  setattr(builtins, name, spied)
""",
    "a thread that watches": """
import time
def watch():
  while True:
    for o in gc.get_objects(): caught.extend(t.decode(errors='replace') for t in texts(o, 1) if b'==' in t)
    time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
""",
    "an answer that is slow": "import time; time.sleep(0.3)",
    "a signal": """
signal.signal(signal.SIGALRM, lambda n, frame: look())
signal.setitimer(signal.ITIMER_REAL, .01, .01)
""",
    "its own end": "import atexit; atexit.register(look)",
}  # fmt: skip
_CAUGHT = "caught = []\ndef places(): return (t for o in (caught, gc.get_objects()) for t in texts(o))\n"
LOOKERS = {name: f"{PRELUDE}def places():\n  {body.strip()}\n" for name, body in PLACES.items()}
LOOKERS |= {name: f"{PRELUDE}{_CAUGHT}{body}\n" for name, body in TRAPS.items()}
TESTS: dict[str, dict[str, Any]] = {
    "assertions": {"tests": f"assert f(3) == {SECRET}\nassert f(3) == {SECRET}\n"},
    "check": {"tests": f"def check(candidate):\n    assert candidate(3) == {SECRET}\n", "fn_name": "f"},
    "calls": {"fn_name": "f", "inputs": [[3], [3]], "outputs": [SECRET, SECRET]},
}


def score(source: str, truth: dict[str, Any]) -> float | None:
    result = code(RewardInput((), (), f"```python\n{source}\n```", truth), seconds=2.0)
    return result and result.value


@pytest.mark.parametrize("truth", TESTS.values(), ids=TESTS)
@pytest.mark.parametrize("name", LOOKERS)
def test_an_answer_finds_no_expectation(name: str, truth: dict[str, Any]) -> None:
    assert score(LOOKERS[name], truth) == 0.0


@pytest.mark.parametrize(
    "name", ["garbage collector", "everything loaded", "frames", "memory around every object"]
)
def test_what_an_answer_can_find_it_would_find(name: str) -> None:
    """The search itself works: what stands in the answer's own memory is found."""
    leaked = f"leak = ['assert f(3) == ' + str({SECRET - 1} + 1)]\n"
    assert score(leaked + LOOKERS[name], TESTS["assertions"]) == 1.0


def test_a_program_finds_no_output() -> None:
    truth = {"inputs": ["3\n", "3\n"], "outputs": [f"{SECRET}\n", f"{SECRET}\n"]}
    for name in (
        "garbage collector",
        "frames",
        "memory around every object",
        "descriptors",
        "memory by /proc",
    ):
        assert score(f"{LOOKERS[name]}\nprint(f(3))", truth) == 0.0


def test_nothing_is_found_in_the_pool_that_runs_use() -> None:
    with Scorer(["code"], workers=1) as scorer:
        for truth in TESTS.values():
            answer = f"```python\n{LOOKERS['garbage collector']}\n```"
            x = RewardInput((), (text_message("assistant", answer),), answer, truth)
            (result,) = scorer.submit([RewardSpec("code")], [x]).results()
            assert (result.values, result.errors) == ({"code": 0.0}, {})


def test_a_second_round_of_tests_meets_a_new_process() -> None:
    with Sandbox(LOOKERS["garbage collector"], ResourceLimits()) as sandbox:
        for _ in range(2):
            assert sandbox.run_tests([(True, f"assert f(3) == {SECRET}")], ["f"]) != [None]
        assert sandbox.call("f", [3]).value is None
