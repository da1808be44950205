"""Values made ahead: in order, within a bound, with errors where the value is asked for."""

import subprocess
import sys
import threading
import time

import pytest

from posttrain.rendering.ahead import Ahead


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_values_are_made_once_in_threads_and_in_order():
    made: list[tuple[int, bool]] = []

    def make(number: int) -> int:
        made.append((number, threading.current_thread() is threading.main_thread()))
        return 10 * number

    ahead = Ahead[int, int](max_bytes=100, threads=1)
    ahead.plan((number, 1, lambda number=number: make(number)) for number in (3, 1, 2, 3))
    until(lambda: len(made) == 3)
    assert made == [(3, False), (1, False), (2, False)]
    assert [ahead.take(number) for number in (3, 1, 2)] == [30, 10, 20]
    assert ahead.take(1) is None
    assert ahead.nbytes == 0


def test_what_was_not_taken_stays_within_the_bound():
    made: list[int] = []
    ahead = Ahead[int, int](max_bytes=10, threads=4)
    ahead.plan((number, 4, lambda number=number: made.append(number) or number) for number in range(6))
    until(lambda: len(made) == 2)
    time.sleep(0.05)
    assert sorted(made) == [0, 1]
    assert ahead.nbytes == 8
    assert ahead.take(0) == 0
    until(lambda: len(made) == 3)
    assert ahead.nbytes == 8
    larger = Ahead[int, int](max_bytes=10, threads=4)
    larger.plan([(0, 50, lambda: 0), (1, 1, lambda: 1)])
    until(lambda: larger.nbytes == 50)
    assert larger.take(0) == 0


def test_an_error_is_raised_where_its_value_is_asked_for():
    def fail() -> int:
        raise ValueError("scene.png is damaged")

    ahead = Ahead[str, int](max_bytes=10, threads=1)
    ahead.plan([("bad", 1, fail), ("good", 1, lambda: 1)])
    assert ahead.take("good") in (1, None)
    with pytest.raises(ValueError, match=r"scene\.png"):
        ahead.take("bad")
    assert ahead.nbytes == 0


def test_a_value_that_nobody_takes_gives_up_its_place():
    ahead = Ahead[str, int](max_bytes=2, threads=1)
    ahead.plan([("unwanted", 2, lambda: 0), ("first", 2, lambda: 1), ("second", 2, lambda: 2)])
    until(ahead._begun["unwanted"][1].done)
    assert ahead.take("first") is None  # its turn had not come: the asker makes it
    until(lambda: "second" in ahead._begun)
    assert ahead.take("second") == 2


def test_without_threads_nothing_is_made():
    ahead = Ahead[int, int](max_bytes=10, threads=0)
    ahead.plan([(1, 1, lambda: 1)])
    assert ahead.take(1) is None


ENDING = """
import os, signal, sys, time
from posttrain.rendering.ahead import Ahead
ahead = Ahead(max_bytes=10**9, threads=2)
ahead.plan((number, 1, lambda: time.sleep(0.3)) for number in range(1000))
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
if sys.argv[1] == "fault":
    raise SystemExit(3)
"""


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("fault", 3), ("kill", -15)])
def test_threads_end_with_the_process(how: str, code: int):
    begun = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", ENDING, how], check=False, timeout=60, capture_output=True
    )
    assert process.returncode == code
    assert time.monotonic() - begun < 20  # a thousand values would take 150 s
