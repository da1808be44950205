"""Figures: metrics.jsonl, the console, and trackers by name."""

import io
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.files.durable import DiskFull
from posttrain.run.directory import RunDir
from posttrain.run.record import ADAPTERS, AdaptersRecord
from posttrain.run.tracking import Console, Tracker, TrackerError, showing_progress


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "resolved.json").write_text('{"name": "demo", "stages": []}')
    return RunDir(tmp_path)


def rows(run: RunDir) -> list[dict[str, Any]]:
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def test_a_row_a_call(run: RunDir) -> None:
    with Tracker(run, ["console"]) as tracker:
        tracker.log("sft", 1, {"loss": 2.5, "tokens": 80})
        tracker.log("rl", 1, {"loss": math.nan, "grad_norm": math.inf})
    assert rows(run) == [
        {"stage": "sft", "step": 1, "loss": 2.5, "tokens": 80.0},
        {"stage": "rl", "step": 1, "loss": None, "grad_norm": None},
    ]
    assert "NaN" not in (run.path / "metrics.jsonl").read_text()


def test_a_figure_cannot_take_a_key_of_the_row(run: RunDir) -> None:
    with pytest.raises(ValueError, match="a metric cannot be called 'step'"):
        Tracker(run).log("sft", 1, {"step": 3})
    assert not (run.path / "metrics.jsonl").exists()


def test_rewind_drops_what_will_be_logged_again(run: RunDir) -> None:
    tracker = Tracker(run)
    tracker.rewind("sft", 0)
    for stage in ("tiny_model", "sft"):
        for step in (1, 2, 3):
            tracker.log(stage, step, {"loss": step})
    tracker.rewind("sft", 1)
    tracker.log("sft", 2, {"loss": 20})
    kept = [(row["stage"], row["step"], row["loss"]) for row in rows(run)]
    assert kept == [("tiny_model", n, n) for n in (1, 2, 3)] + [("sft", 1, 1), ("sft", 2, 20)]


@pytest.mark.parametrize(
    "torn", ['{"stage": "sft", "st', '{"stage": "sft", "step": 2, "time": 1, "loss": 2}']
)
@pytest.mark.parametrize("rewind", [False, True])
def test_a_row_that_a_crash_cut_is_dropped(run: RunDir, torn: str, rewind: bool) -> None:
    Tracker(run).log("sft", 1, {"loss": 1})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    tracker = Tracker(run)
    if rewind:
        tracker.rewind("sft", 5)
    tracker.log("sft", 2, {"loss": 2})
    assert [row["step"] for row in rows(run)] == [1, 2]


def test_a_first_row_that_a_crash_cut(run: RunDir) -> None:
    (run.path / "metrics.jsonl").write_text('{"stage": "s')
    Tracker(run).log("sft", 1, {"loss": 1})
    assert [row["step"] for row in rows(run)] == [1]


def test_a_full_disk_is_told_and_no_half_row_is_left(run: RunDir) -> None:
    """A file-size limit in a process of its own stands for the disk's end."""
    code = """
import resource, signal, sys
from pathlib import Path
from posttrain.files.durable import DiskFull
from posttrain.run.directory import RunDir
from posttrain.run.tracking import Tracker
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
tracker = Tracker(RunDir(Path(sys.argv[1])))
try:
    for step in range(100):
        tracker.log("sft", step, {"loss": 1.0})
except DiskFull as error:
    sys.exit(str(error))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False
    )
    assert "metrics.jsonl was not written, the disk is full" in result.stderr
    assert len(rows(run)) >= 2
    assert (run.path / "metrics.jsonl").read_text().endswith("}\n")


def test_dev_full(run: RunDir) -> None:
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskFull):
        Tracker(run).log("sft", 1, {"loss": 1.0})


def test_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.start("sft", 100)
    for step in range(1, 101):
        console.log("sft", step, {"learning_rate": 1e-3, "loss": 0.51234567, "reward/mean": 0.25})
    assert stream.getvalue().splitlines() == [
        "sft  step 1/100  reward/mean 0.25  loss 0.5123",
        "sft  step 100/100  reward/mean 0.25  loss 0.5123",
    ]


def test_a_held_out_loss_is_shown_whenever_it_is_measured() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.start("sft", 100)
    console.log("sft", 0, {"eval_loss": 2.5})
    for step in range(1, 11):
        console.log("sft", step, {"loss": 0.5})
    console.log("sft", 10, {"eval_loss": 1.25, "eval_left_out": 0.0})
    assert stream.getvalue().splitlines() == [
        "sft  step 0/100  eval_loss 2.5",
        "sft  step 10/100  eval_loss 1.25",
    ]


def test_a_stage_that_was_not_announced_gets_lines_too() -> None:
    stream = io.StringIO()
    Console(stream).log("rl", 7, {"entropy": 1.5})
    assert stream.getvalue() == "rl  step 7  entropy 1.5\n"


def test_a_bar_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    console = Console(stream)
    console.start("sft", 10)
    console.log("sft", 4, {"loss": 0.5})
    console.log("sft", 10, {"loss": 0.25})
    console.start("rl", 5)
    console.close()
    assert "sft: 100%" in stream.getvalue()
    assert "loss 0.25" in stream.getvalue()
    assert "rl:   0%" in stream.getvalue()


def test_what_workers_log_is_shown_here(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.path / "metrics.jsonl"
    path.write_text('{"stage": "sft", "step": 1, "time": 0, "loss": 9.0}\n')  # of before, not shown
    with showing_progress(run, "sft", total_steps=4), path.open("a") as file:
        file.write('{"stage": "other", "step": 3, "time": 0, "loss": 8.0}\n')
        file.write('{"stage": "sft", "step": 3, "time": 0, "loss": null}\n{"stage": "sft", "st')
        file.flush()
        file.write('ep": 4, "time": 0, "loss": 2.5}\n')
        file.flush()
    shown = capsys.readouterr().err
    assert "sft  step 4/4  loss 2.5" in shown
    assert "step 1/4" not in shown
    assert "other" not in shown


def test_an_unknown_tracker_is_refused(run: RunDir) -> None:
    with pytest.raises(TrackerError, match="'tensorbord' is not one of console, tensorboard, wandb, trackio"):
        Tracker(run, ["tensorbord"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_told(run: RunDir, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TrackerError, match=f"pip install {name}"):
        Tracker(run, [name])


def test_a_tracker_that_fails_midway_does_not_end_the_run(
    run: RunDir, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreachable:
        def __init__(self, run: RunDir) -> None:
            pass

        def log(self, stage: str, step: int, metrics: object) -> None:
            raise ConnectionError("server gone")

        def close(self) -> None:
            raise AssertionError("left out by now")

    monkeypatch.setitem(sys.modules["posttrain.run.tracking"].SINKS, "wandb", Unreachable)
    with caplog.at_level(logging.WARNING), Tracker(run, ["wandb"]) as tracker:
        tracker.log("sft", 1, {"loss": 1.0})
        tracker.log("sft", 2, {"loss": 1.0})
    assert len(rows(run)) == 2
    assert caplog.text.count("tracker wandb failed and is left out") == 1


def test_tensorboard(run: RunDir) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    with Tracker(run, ["tensorboard"]) as tracker:
        tracker.log("sft", 1, {"loss": 2.5})
        tracker.log("sft", 2, {"loss": 2.0})
    events = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("sft/loss")] == [(1, 2.5), (2, 2.0)]


def test_wandb_offline(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Tracker(run, ["wandb"]) as tracker:
        tracker.log("sft", 1, {"loss": 2.5})
    assert list((run.path / "wandb").glob("offline-run-*/*.wandb"))


def test_trackio(run: RunDir) -> None:
    """In a process of its own: trackio settles where it writes when it is first imported."""
    pytest.importorskip("trackio", reason="trackio is not installed")
    code = """
import sys
from pathlib import Path
from posttrain.run.directory import RunDir
from posttrain.run.tracking import Tracker
with Tracker(RunDir(Path(sys.argv[1])), ["trackio"]) as tracker:
    tracker.log("sft", 1, {"loss": 2.5})
"""
    subprocess.run(
        [sys.executable, "-c", code, str(run.path)],
        env=os.environ | {"TRACKIO_DIR": str(run.path / "trackio")},
        check=True,
    )
    assert list((run.path / "trackio").glob("posttrain*.db"))


def test_what_a_stage_adapts_is_shown_once(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "sft").mkdir()
    record = AdaptersRecord({"language model": {"q_proj": 28, "v_proj": 28}}, 1234)
    with showing_progress(run, "sft", total_steps=4):
        record.write(run.path / "sft" / ADAPTERS)
    told = "sft: adapters of 1,234 parameters on 56 layers of 2 kinds in the language model"
    assert capsys.readouterr().err.count(told) == 1
    with showing_progress(run, "sft", total_steps=4):
        pass  # nothing new was written
    assert told not in capsys.readouterr().err
