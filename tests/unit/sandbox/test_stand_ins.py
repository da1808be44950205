"""Tests that ask an answer in another process: what they see is what they would see beside it."""

from typing import Any

import pytest

from posttrain.sandbox import ResourceLimits, Sandbox
from posttrain.sandbox.statements import split_tests


def verdicts(source: str, tests: str, names: tuple[str, ...] = ()) -> list[str | None]:
    statements, found = split_tests(tests, names)
    with Sandbox(source, ResourceLimits(seconds=2.0)) as sandbox:
        return sandbox.run_tests(statements, found)


STACK = """
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item); return self
    def pop(self):
        if not self.items: raise EmptyError('nothing to pop')
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __contains__(self, item): return item in self.items
    def __getitem__(self, i): return self.items[i]
    def __setitem__(self, i, item): self.items[i] = item
    def __delitem__(self, i): del self.items[i]
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
    def __str__(self): return 'Stack' + str(self.items)
    def __repr__(self): return f'<{self.items}>'
    def __bool__(self): return bool(self.items)
    def __enter__(self): return self
    def __exit__(self, *_): self.items.clear()
    @property
    def top(self): return self.items[-1]
    @classmethod
    def of(cls, *items): return cls(items)
    @staticmethod
    def limit(): return 10
class StackError(Exception): pass
class EmptyError(StackError, IndexError):
    code = 7
"""
VECTOR = """
import dataclasses, functools
@functools.total_ordering
@dataclasses.dataclass(frozen=True)
class Vector:
    x: int
    y: int = 0
    def __add__(s, o): return Vector(s.x + o.x, s.y + o.y)
    def __mul__(s, k): return Vector(s.x * k, s.y * k)
    __rmul__ = __mul__
    def __neg__(s): return Vector(-s.x, -s.y)
    def __abs__(s): return (s.x ** 2 + s.y ** 2) ** 0.5
    def __lt__(s, o): return abs(s) < abs(o)
def middle(a, b): return Vector((a.x + b.x) // 2, (a.y + b.y) // 2)
"""
CACHE = """
from collections import OrderedDict
class LRUCache(OrderedDict):
    def __init__(self, size): super().__init__(); self.size = size
    def get(self, key):
        if key not in self: return -1
        self.move_to_end(key)
        return self[key]
    def put(self, key, value):
        self[key] = value
        self.move_to_end(key)
        if len(self) > self.size: self.popitem(last=False)
"""
LISTS = """
class Node:
    def __init__(self, val, next=None): self.val, self.next = val, next
def build(items):
    head = None
    for item in reversed(items): head = Node(item, head)
    return head
def turn(head):
    before = None
    while head: head.next, before, head = before, head, head.next
    return before
"""
NAIVE = (
    "def gen(n):\n  yield from range(n)\ndef forever():\n  n = 0\n  while True:\n    yield n\n    n += 1\n"
)
ALIKE: list[tuple[str, str, str]] = [
    (STACK, "Stack StackError EmptyError", test)
    for test in r"""
s = Stack(); s.push(1); s.push(2); assert s.pop() == 2 and s.pop() == 1
s = Stack([1, 2]); assert len(s) == 2 and list(s) == [1, 2] and s[0] == 1 and s[-1] == 2 and s[:1] == [1]
s = Stack([1, 2]); assert 2 in s and 3 not in s and sorted(s, reverse=True) == [2, 1] and max(s) == 2
s = Stack([1, 2]); s[0] = 5; del s[1]; assert list(s) == [5]
assert Stack([1]) == Stack([1]) and Stack([1]) != Stack([2]) and Stack.of(1, 2) == Stack([1, 2])
assert str(Stack([1])) == 'Stack[1]' and repr(Stack([1])) == '<[1]>' and f'{Stack([1])}!' == 'Stack[1]!'
assert not Stack() and Stack([0]) and Stack([3]).top == 3 and Stack.limit() == 10
s = Stack([1]); assert isinstance(s, Stack) and not isinstance(1, Stack) and type(s) == type(Stack())
assert hasattr(Stack(), 'push') and not hasattr(Stack(), 'peek') and Stack.__name__ == 'Stack'
s = Stack(); assert s.push(1).push(2) is s and s.items == [1, 2]
s = Stack([1]); s.items = [7]; assert s.top == 7 and list(map(str, s)) == ['7']
with Stack([1]) as s: pass\nassert len(s) == 0
import copy; s = Stack([1]); t = copy.deepcopy(s); t.push(2); assert len(s) == 1 and len(t) == 2
s = Stack([1]); assert s in [Stack([2]), s] and [Stack([1])] == [Stack([1])] and (s, 1) == (Stack([1]), 1)
try: Stack().pop()\nexcept EmptyError as e: assert (str(e), e.code) == ('nothing to pop', 7)\nelse: assert 0
try: Stack().pop()\nexcept StackError: pass\nelse: assert False
try: Stack().pop()\nexcept IndexError as error: assert error.args == ('nothing to pop',)\nelse: assert False
try: Stack().pop()\nexcept KeyError: assert False\nexcept LookupError: pass\nelse: assert False
assert issubclass(EmptyError, StackError) and issubclass(StackError, Exception)
try: Stack([1])[5]\nexcept IndexError as error: assert 'range' in str(error)\nelse: assert False
""".strip().splitlines()
]
ALIKE += [
    (VECTOR, "Vector middle", test)
    for test in r"""
assert Vector(1, 2) == Vector(1, 2) != Vector(2, 1) and len({Vector(1), Vector(1), Vector(2)}) == 2
assert Vector(1, 2) + Vector(3, 4) == Vector(4, 6) and (Vector(1, 2) + Vector(1, 1)).y == 3
assert Vector(1, 2) * 3 == Vector(3, 6) == 3 * Vector(1, 2) and -Vector(1) == Vector(-1)
assert abs(Vector(3, 4)) == 5.0 and Vector(1) < Vector(2) and max(Vector(1), Vector(3)) == Vector(3)
assert sorted([Vector(3), Vector(1)])[0].x == 1 and middle(Vector(0), Vector(4, 2)) == Vector(2, 1)
v = Vector(1)\ntry: v.x = 2\nexcept AttributeError: pass\nelse: assert False
assert repr(Vector(1, 2)) == 'Vector(x=1, y=2)' and Vector(x=1, y=2).y == 2
""".strip().splitlines()
]
ALIKE += [
    (
        CACHE,
        "LRUCache",
        "c = LRUCache(2); c.put(1, 1); c.put(2, 2); c.get(1); c.put(3, 3); assert c.get(2) == -1",
    ),
    (CACHE, "LRUCache", "c = LRUCache(1); c.put(1, 5); assert c.get(1) == 5 and len(c) == 1 and c == {1: 5}"),
    (
        LISTS,
        "build turn",
        "h = turn(build([1, 2, 3])); assert (h.val, h.next.val, h.next.next.next) == (3, 2, None)",
    ),
    (
        LISTS,
        "build turn",
        "n, out = build([1, 2]), []\nwhile n: out.append(n.val); n = n.next\nassert out == [1, 2]",
    ),
    (NAIVE, "gen", "assert list(gen(3)) == [0, 1, 2] and next(gen(2)) == 0 and sum(gen(2000)) == 1999000"),
    (NAIVE, "forever", "import itertools; assert list(itertools.islice(forever(), 4)) == [0, 1, 2, 3]"),
    (NAIVE, "gen", "g = gen(2); next(g); next(g)\ntry: next(g)\nexcept StopIteration: pass\nelse: assert 0"),
    ("def f(a): a.sort()", "f", "a = [3, 1]; f(a); assert a == [1, 3]"),
    ("def f(a): a.sort(); return a", "f", "a = [3, 1]; f(a); assert a == [1, 3]"),
    (
        "def f(a): a.sort(); return len(a)",
        "f",
        "def check(g):\n  a = [3, 1]\n  g(a)\n  assert a == [1, 3]\ncheck(f)",
    ),
    (
        "def f(m): m[:] = [list(r) for r in zip(*m)]",
        "f",
        "m = [[1, 2], [3, 4]]; f(m); assert m == [[1, 3], [2, 4]]",
    ),
    (
        "def f(d, *, key): d[key] = 1; d.pop('x')",
        "f",
        "d = {'x': 0}; assert f(d, key='y') is None; assert d == {'y': 1}",
    ),
    ("def f(s): s.add(3)", "f", "s = {1}; f(s); assert s == {1, 3}"),
    ("def f(b): b[0] = 65", "f", "b = bytearray(b'xyz'); f(b); assert b == bytearray(b'Ayz')"),
    (
        "def f(q): q.rotate(1)",
        "f",
        "from collections import deque; q = deque([1, 2]); f(q); assert q == deque([2, 1])",
    ),
    ("def f(g, xs): return list(map(g, xs))", "f", "assert f(str, [1]) == ['1'] and f(len, ['ab']) == [2]"),
    (
        "def f(xs, kind): return [x for x in xs if type(x) is kind]",
        "f",
        "assert f([1, 'a', 2.0], int) == [1]",
    ),
    ("def f(x): return type(x)", "f", "assert f(1) is int and f('') == str and f(None) is type(None)"),
    (
        "def f(n): return range(n)",
        "f",
        "assert f(3) == range(3) and list(f(3)) == [0, 1, 2] and f(9)[2] == 2",
    ),
    (
        "from collections import *\ndef f(x): return Counter(x)",
        "f",
        "assert f('aab') == {'a': 2, 'b': 1} and f('aab').most_common(1) == [('a', 2)] and f('a')['z'] == 0",
    ),
    (
        "from collections import *\ndef f(x): d = defaultdict(list); d[x].append(1); return d",
        "f",
        "assert f('a') == {'a': [1]} and f('a')['new'] == [] and isinstance(f('b'), dict)",
    ),
    (
        "from collections import *\nP = namedtuple('P', 'x y')\ndef f(x): return P(x, 2)",
        "f",
        "assert f(1) == (1, 2) and f(1).y == 2 and f(1)._asdict() == {'x': 1, 'y': 2}",
    ),
    (
        "from decimal import *\ndef f(x): return Decimal(x) / 4",
        "f",
        "from decimal import *; assert f('1') == Decimal('.25')",
    ),
    (
        "from fractions import *\ndef f(x): return Fraction(x, 6)",
        "f",
        "from fractions import *; assert f(2) == Fraction(1, 3)",
    ),
    (
        "from datetime import *\ndef f(d): return d + timedelta(days=1)",
        "f",
        "import datetime as d; assert f(d.date(2024, 2, 28)) == d.date(2024, "
        "2, 29) and f(d.datetime(2024, 1, 1)).day == 2",
    ),
    (
        "def f(x): return x",
        "f",
        "assert f(float('inf')) == float('inf') and f(float('nan')) != f(0) and f(1j) == 1j",
    ),
    (
        "def f(x): return x",
        "f",
        "assert f({1: {2}, (1, 2): frozenset({3}), None: b'x'}) == {1: {2}, "
        "(1, 2): frozenset({3}), None: b'x'}",
    ),
    ("def f(x): return x", "f", "assert f(...) is ... if False else f(slice(1, 2)) == slice(1, 2)"),
    ("def f(d): return d.keys()", "f", "assert f({1: 2}) == {1} and sorted(f({2: 1, 1: 1})) == [1, 2]"),
    (
        "def f(x): raise ValueError('no', 3)",
        "f",
        "try: f(1)\nexcept ValueError as e: assert e.args == ('no', 3)\nelse: assert 0",
    ),
    (
        "def f(x): return {}[x]",
        "f",
        "try: f('k')\nexcept KeyError as e: assert str(e) == repr('k')\nelse: assert 0",
    ),
    (
        "import sys\ndef f(x): sys.exit(x)",
        "f",
        "try: f(3)\nexcept SystemExit as e: assert e.code == 3\nelse: assert 0",
    ),
    (
        "def f(n): return lambda x: x + n",
        "f",
        "assert f(2)(3) == 5 and callable(f(1)) and list(map(f(1), [1, 2])) == [2, 3]",
    ),
    ("import functools\ndef f(g=None): return functools.partial(max, 3)", "f", "assert f()(5) == 5"),
    (
        "import enum\nclass C(enum.Enum):\n  RED = 1\n  BLUE = 2\ndef f(c): "
        "return C.BLUE if c is C.RED else c",
        "f C",
        "assert f(C.RED) is C.BLUE and f(C.BLUE) == C.BLUE and C.RED.value == "
        "1 and C['RED'] == C.RED and len(C) == 2",
    ),
    ("def f(*a, **k): return a, k", "f", "assert f(1, *[2], z=3) == ((1, 2), {'z': 3}) and f() == ((), {})"),
    ("class Solution:\n  def add(self, a, b): return a + b", "Solution", "assert Solution().add(1, 2) == 3"),
    ("x = [1, 2]\ndef f(): x.append(3)", "x f", "assert x == [1, 2]"),
]


@pytest.mark.parametrize(("source", "names", "tests"), ALIKE, ids=range(len(ALIKE)))
def test_tests_see_what_they_would_see_beside_the_answer(source: str, names: str, tests: str) -> None:
    tests = tests.replace("\\n", "\n")
    beside: dict[str, Any] = {}
    exec(f"{source}\n{tests}", beside)  # the case itself holds
    assert set(verdicts(source, tests, tuple(names.split()))) == {None}


UNLIKE = [
    (STACK, "Stack", "assert Stack([1]) == [1]"),
    (STACK, "Stack", "assert Stack([1]) == Stack([2])"),
    ("class Any:\n  def __eq__(s, o): return True\ndef f(x): return Any()", "f Any", "assert f(1) == 1"),
    (
        "class Any:\n  def __init__(s, x=0): s.x = x\n  def __eq__(s, o): "
        "return True\ndef f(x): return Any()",
        "f Any",
        "assert f(1) == Any(1)",
    ),
    (
        "class Any:\n  def __eq__(s, o): return True\n  def __contains__(s, x): return True\n"
        "  def __iter__(s): return iter(())\ndef f(x): return Any()",
        "f",
        "assert 3 in f(1)",
    ),
    (
        "class Any:\n  __lt__ = __gt__ = __le__ = __ge__ = lambda s, o: True\ndef f(x): return Any()",
        "f",
        "assert f(1) >= 2",
    ),
    (
        "class Any:\n  __lt__ = __gt__ = __le__ = __ge__ = lambda s, o: True\ndef f(x): return Any()",
        "f",
        "assert max(f(1), 2) == 2",
    ),
    (
        "class Any:\n  __sub__ = __rsub__ = lambda s, o: 0\ndef f(x): return Any()",
        "f",
        "assert abs(f(1) - 2) < 1e-6",
    ),
    (
        "class Any:\n  __float__ = lambda s: 2.0\ndef f(x): return Any()",
        "f",
        "import math; assert math.isclose(f(1), 2)",
    ),
    ("class Any:\n  __int__ = __index__ = lambda s: 2\ndef f(x): return Any()", "f", "assert int(f(1)) == 2"),
    ("class Any:\n  __bool__ = lambda s: True\ndef f(x): return Any()", "f", "assert f(1) is True"),
    (
        "class Any:\n  __hash__ = lambda s: hash(2)\n  __eq__ = lambda s, o: True\ndef f(x): return Any()",
        "f",
        "assert {f(1)} == {2} or f(1) in {2}",
    ),
    (
        "class Any(str):\n  __eq__ = lambda s, o: True\n  __hash__ = str.__hash__\ndef f(x): return Any()",
        "f",
        "assert f(1) == 'a'",
    ),
    (
        "class Any(dict):\n  def __missing__(s, k): return 2\n  __eq__ = "
        "lambda s, o: True\ndef f(x): return Any()",
        "f",
        "assert f(1)['a'] == 2",
    ),
    (
        "class Any(list):\n  def more(s): pass\n  __eq__ = lambda s, o: True\ndef f(x): return Any()",
        "f",
        "assert f(1) == [2]",
    ),
    (
        "class M(type):\n  __instancecheck__ = __eq__ = lambda s, o: True\n  __hash__ = type.__hash__\n"
        "class f(metaclass=M):\n  def __new__(c, x): return c",
        "f",
        "assert isinstance(f(1), int)",
    ),
    ("def f(x):\n  x.clear()\n  return []", "f", "xs = [2, 1]\nassert f(xs) == sorted(xs)"),
    ("def f(x):\n  x.clear()\n  return []", "f", "xs = [2, 1]\nout = f(xs)\nassert out == sorted(xs)"),
    ("def f(x):\n  n = 0\n  while True:\n    yield n", "f", "assert 3 in f(1)"),
    ("def f(x):\n  while True: yield 1", "f", "assert sum(f(1)) == 3"),
    ("class E(Exception): pass\ndef f(x): raise E", "f", "try: f(1)\nexcept ValueError: pass\nassert f"),
    ("def f(x): raise AssertionError", "f", "assert f(1)"),
    ("def f(x): raise StopIteration", "f", "for _ in map(f, [1]): pass\nassert list(map(f, [1])) == []"),
    ("def f(x): raise GeneratorExit", "f", "assert f(1) == 2"),
    ("def f(x): raise KeyboardInterrupt", "f", "try: f(1)\nexcept BaseException: pass\nassert f(2) == 2"),
]


@pytest.mark.parametrize(("source", "names", "tests"), UNLIKE, ids=range(len(UNLIKE)))
def test_what_an_object_says_of_itself_counts_for_nothing(source: str, names: str, tests: str) -> None:
    assert None not in verdicts(source, tests, tuple(names.split()))[-1:]


RUNNERS = [
    "def test_one():\n    assert f(1) == 2\ndef test_two():\n    assert f(2) == 3\n",
    "from solution import f\ndef test_one():\n    assert f(1) == 2\ndef test_two():\n    assert f(2) == 3\n",
    "import unittest\nclass TestF(unittest.TestCase):\n    def setUp(self): self.x = 1\n"
    "    def test_one(self): self.assertEqual(f(self.x), 2)\n"
    "    def test_two(self):\n        with self.assertRaises(TypeError): "
    "f('a')\n        self.assertEqual(f(2), 3)\n"
    "if __name__ == '__main__':\n    unittest.main()\n",
    "from unittest import TestCase\nclass T(TestCase):\n    @classmethod\n "
    "   def setUpClass(cls): cls.y = 2\n"
    "    def test_one(self): self.assertAlmostEqual(f(self.y), 3)\n    def "
    "test_two(self): self.assertIn(f(2), [3])\n",
]


@pytest.mark.parametrize("tests", RUNNERS)
def test_tests_that_a_runner_would_find_are_run(tests: str) -> None:
    assert verdicts("def f(x): return x + 1", tests, ("f",) if "solution" not in tests else ()) == [
        None,
        None,
    ]
    wrong = verdicts("def f(x): return x + 2", tests, ("f",) if "solution" not in tests else ())
    assert [type(why) for why in wrong] == [str, str]
