"""Answers that try to forge the verdict of their tests: whatever they do, they earn nothing."""

from typing import Any

import pytest

from posttrain.sandbox import ResourceLimits, Sandbox
from posttrain.types import RewardInput
from rewards.builtin.code import code


def score(source: str, truth: Any, **params: Any) -> float:
    result = code(RewardInput((), (), f"```python\n{source}\n```", ground_truth=truth), **params)
    assert result is not None
    return result.value


ALWAYS_EQUAL = "class Any:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
FORGERIES = {
    "always equal": """
class Any:
    def __eq__(self, other): return True
    def __hash__(self): return 0
def f(x): return Any()
""",
    "always equal, an int": """
class N(int):
    def __eq__(self, other): return True
    __ne__ = __lt__ = __gt__ = lambda self, other: False
def f(x): return N(0)
""",
    "always equal, a list": """
class L(list):
    def __eq__(s, o): return True
    def __len__(s): return 3
def f(x): return L()
""",
    "lies about its class": """
class Any:
    def __eq__(self, other): return True
    def __hash__(self): return 0
    __class__ = property(lambda s: int)
def f(x): return Any()
""",
    "exit within": """
import sys
def f(x): sys.exit(0)
""",
    "exit at once": """
import os
os._exit(0)
""",
    "exit at import": "raise SystemExit(0)",
    "patched builtins": """
import builtins
for name in ('all', 'abs', 'sorted', 'len', 'AssertionError', 'print'):
    setattr(builtins, name, lambda *a, **k: True)
def f(x): return None
""",
    "patched json": """
import json
json.dumps = lambda *a, **k: 'true'
def f(x): return None
""",
    "patched modules": """
import sys
for m in list(sys.modules.values()):
  for n in ('report', 'encode', 'judge', 'compile'):
    if hasattr(m, n): setattr(m, n, lambda *a, **k: True)
def f(x): return True
""",
    "forged reports": r"""
import os
for n in range(3, 9):
  try: os.write(n, b'{"failed": ""}\n' * 9)
  except OSError: pass
def f(x): return None
""",
    "forged verdict, then exit": r"""
import os
for n in range(3, 9):
  try: os.write(n, b'{"value": true, "failed": ""}\n')
  except OSError: pass
os._exit(0)
""",
    "ends the loop": "def f(x): raise StopIteration",
    "raises what is expected": "def f(x): raise AssertionError",
    "missing module": "def f(x): raise ModuleNotFoundError('numpy')",
    "half a surrogate": "def f(x): raise ValueError('\\ud800')",
    "returns half a surrogate": "def f(x): return '\\ud800'",
    "changes its arguments": """
def f(x):
  if isinstance(x, list): x.clear()
  return []
""",
    "infinite generator": """
def f(x):
  while True: yield x
""",
    "deep value": """
def f(x):
  v = []
  for _ in range(10**5): v = [v]
  return v
""",
    "cycle": """
def f(x):
  v = []
  v.append(v)
  return v
""",
    "large integer": "def f(x): return 1 << 10**7",
    "large key": "def f(x): return {1 << 20000: 1}",
    "large text": "def f(x): return 'x' * (1 << 26)",
    "not a number": "def f(x): return float('nan')",
    "hostile repr": """
class E(Exception):
  def __str__(self): raise SystemExit(0)
def f(x): raise E
""",
    "unhashable keys": r"""
import os
os.write(3, b'{"value": {"dict": [[[], 1]]}}\n'); os._exit(0)
""",
    "wrong shape": r"""
import os
os.write(3, b'["error"]\n'); os._exit(0)
""",
    "hangs": """
def f(x):
  while True: pass
""",
    "no such name": "g = 1",
    "no Python": "def f(x) return 1",
    "a class": """
class f:
  def __new__(cls, x): return object.__new__(cls)
  def __eq__(self, o): return True
""",
    "print as tests": """
print('passed'); print('2 of 2 tests passed')
def f(x): print('ok')
""",
}
CALLS = {"fn_name": "f", "inputs": [[7], [[3, 1]]], "outputs": [14, [1, 3]]}
ASSERTS = {
    "tests": "assert f(7) == 14\nassert f(7) >= 14 and f(7) <= 14\nassert abs(f(7) - 14) < 1e-6\n"
    "assert all(map(lambda n: f(n) == 2 * n, [1, 2])) and f(1) == 2\n"
    "assert isinstance(f(7), int) and f(7) == 14\n"
    "xs = [3, 1]\nassert f(xs) == sorted(xs)\ndef check(g):\n    assert g(2) == 4\ncheck(f)"
}


@pytest.mark.parametrize("truth", [CALLS, ASSERTS], ids=["calls", "asserts"])
@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_cannot_be_forged(name: str, truth: dict[str, Any]) -> None:
    assert score(FORGERIES[name], truth, seconds=1.0, total_seconds=6.0) == 0.0


def test_an_attack_is_not_carried_over() -> None:
    for source in list(FORGERIES.values())[:12]:
        score(source, CALLS, seconds=1.0)
        assert score("def f(x): return 15", CALLS) == 0.0


def test_a_later_run_does_not_see_an_earlier_one() -> None:
    source = "import builtins\nprint(getattr(builtins, 'seen', 'nothing'))\nbuiltins.seen = input()"
    with Sandbox(source, ResourceLimits()) as sandbox:
        assert [sandbox.run_program("secret").output for _ in range(3)] == ["nothing\n"] * 3
