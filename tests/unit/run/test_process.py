"""One process at a time on a run, and SIGTERM."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from posttrain.run.directory import RunDir
from posttrain.run.process import (
    RunInUse,
    RunStopped,
    ending_on_sigterm,
    saving_on_sigterm,
    stop_requested,
    working_on,
)

HOLD = """
import sys, time
from pathlib import Path
from posttrain.run.process import working_on
with working_on(Path(sys.argv[1])):
    print("working", flush=True)
    time.sleep(600)
"""


def terminate(times: int = 1) -> None:
    """Send SIGTERM, which is to end it before the last line."""
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("went on")


def steps_until_stopped(run: RunDir) -> int:
    """A training loop that SIGTERM reaches in its third step."""
    step = 0
    while not stop_requested(run):
        step += 1
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
    return step


def fail(message: str, terminated: bool) -> None:
    if terminated:
        os.kill(os.getpid(), signal.SIGTERM)
    raise RuntimeError(message)


def test_a_second_process_is_refused_until_the_first_has_died(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "working\n"
    with (
        pytest.raises(RunInUse, match=rf"run is in use by process {first.pid} on .*: wait until"),
        working_on(tmp_path / "run"),
    ):
        pytest.fail("both work on the run")
    first.kill()
    first.wait()
    with working_on(tmp_path / "run"):
        pass


def test_a_directory_of_something_else_keeps_no_lock(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with working_on(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_outside_of_training_sigterm_ends_the_run_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunStopped, match="--resume") as caught, ending_on_sigterm():
        terminate()
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_nothing_takes_sigterm_for_a_fault_of_its_own() -> None:
    """What retries or explains failures on the way must not hold it."""
    with pytest.raises(RunStopped), ending_on_sigterm(), suppress(Exception):
        terminate()
    with pytest.raises(KeyboardInterrupt), ending_on_sigterm():
        raise KeyboardInterrupt


def test_training_is_asked_to_stop_and_then_the_run_ends(tmp_path: Path) -> None:
    run, steps = RunDir(tmp_path), []
    with pytest.raises(RunStopped, match="what was learned is saved"), saving_on_sigterm(run):
        steps.append(steps_until_stopped(run))
    assert steps == [3]
    assert not stop_requested(run)


def test_a_second_sigterm_does_not_wait(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(RunStopped, match="second SIGTERM"), saving_on_sigterm(run):
        terminate(times=2)
    assert not stop_requested(run)


def test_workers_that_sigterm_ended_too_are_no_crash(tmp_path: Path) -> None:
    expected = r"last checkpoint is kept.*workers died.*alone"
    with pytest.raises(RunStopped, match=expected), saving_on_sigterm(RunDir(tmp_path)):
        fail("workers died", terminated=True)
    with pytest.raises(RuntimeError, match="for another reason"), saving_on_sigterm(RunDir(tmp_path)):
        fail("for another reason", terminated=False)


def test_what_an_earlier_run_left_stops_nobody(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (tmp_path / ".stop").touch()
    with saving_on_sigterm(run):
        assert not stop_requested(run)
