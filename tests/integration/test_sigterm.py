"""A run is told to end: with a checkpoint of the step under way if there is one, and no process left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.integration.disturbed_run import Attempt, write_recipe
from tests.integration.supervised_stages import SFT, write_data

pytestmark = pytest.mark.slow

TIMEOUT = 300


def test_a_terminated_run_saves_the_step_under_way_and_ends(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A worker of Ray Train; that going on from there changes nothing is tested without Ray."""
    write_data(tmp_path)
    recipe = {
        "name": "run",
        "output_dir": str(tmp_path),
        "model": {"name_or_path": str(tiny_checkpoint), "dtype": "float32"},
        "cluster": {"num_cpus": 2},
        "stages": [SFT | {"max_steps": 5000, "save_steps": 5000, "logging_steps": 1}],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    process = subprocess.Popen(
        [sys.executable, "-m", "posttrain.cli", "run", str(tmp_path / "run.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"POSTTRAIN_CACHE": str(tmp_path / "cache")},
        start_new_session=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + TIMEOUT
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143, output
    assert "what was learned is saved, go on with --resume" in output
    [checkpoint] = (tmp_path / "run" / "sft").glob("checkpoint-*")
    assert len(metrics.read_text().splitlines()) == int(checkpoint.name.removeprefix("checkpoint-"))
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_ended_while_learners_start_does_not_wait_for_them(
    number: signal.Signals, expected: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    attempt = Attempt(write_recipe(tmp_path / "rl", tiny_checkpoint), resume=False, patience=TIMEOUT)
    try:
        below = attempt.ask_to_end("learner", number)
        begun = time.monotonic()
        assert attempt.finish() == expected, attempt.output
        assert time.monotonic() - begun < 30
        _, left = psutil.wait_procs(below, timeout=30)
        assert not left
    finally:
        attempt.close()
