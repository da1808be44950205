"""Sides of a benchmark that take turns: their figures, their ends, and what is said of one that fails."""

import runpy
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
SIDE = f"""
import sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
from bench_rl_turns import Turns
turns = Turns(sys.argv[-1])
told = turns.wait()
while True:
    if told == "fail":
        raise ValueError("it broke")
    end = time.process_time() + told
    while time.process_time() < end:
        pass
    told = turns.wait({{"told": told, "seconds": turns.seconds()}})
"""


@pytest.fixture
def make_side(tmp_path: Path) -> Any:
    (tmp_path / "side.py").write_text(SIDE)
    kind = runpy.run_path(str(SCRIPTS / "bench_rl_turns.py"))["Side"]
    return lambda: kind("it", [str(tmp_path / "side.py")], tmp_path / "log")


def test_a_side_works_in_its_turns_alone(make_side: Any) -> None:
    with make_side() as side:
        side.ready()
        idle = psutil.Process(side._process.pid).cpu_times().user
        time.sleep(0.5)
        assert psutil.Process(side._process.pid).cpu_times().user - idle < 0.1
        for told in (0.3, 0.2):
            figures = side.turn(told)
            assert figures["told"] == told
            assert figures["seconds"] >= told
            assert figures["cpu"] == pytest.approx(told, abs=0.15)
    assert side._process.poll() == 0


def test_a_side_that_fails_is_shown(make_side: Any) -> None:
    with make_side() as side, pytest.raises(SystemExit, match="it broke"):
        side.turn("fail")


def test_a_side_ends_with_the_process_that_compares(tmp_path: Path) -> None:
    (tmp_path / "side.py").write_text(SIDE)
    started = tmp_path / "started"
    comparing = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
from pathlib import Path
from bench_rl_turns import Side
side = Side("it", [{str(tmp_path / "side.py")!r}], Path({str(tmp_path / "log")!r}))
side.ready()
Path({str(started)!r}).write_text(str(side._process.pid))
side.turn(1000)
"""
    parent = psutil.Popen([sys.executable, "-c", comparing])
    while not started.exists() or not started.read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    side = psutil.Process(int(started.read_text()))
    parent.kill()
    parent.wait()
    assert side.wait(timeout=20) is None
