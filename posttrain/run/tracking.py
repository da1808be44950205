"""Where a run's figures go: always to the console and `metrics.jsonl`, to other trackers by name."""

import errno
import hashlib
import importlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, SupportsFloat, TextIO

from tqdm import tqdm

from posttrain.files.durable import explaining_full_disk, write_atomic
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import (
    ACCURACY,
    ENTROPY,
    EPISODE_TOOL_CALLS,
    GRAD_NORM,
    HELD_OUT,
    HELD_OUT_LOSS,
    HELD_OUT_PREFERRED,
    LOSS,
    REWARD_MEAN,
    TIME_STEP,
)
from posttrain.run.record import ADAPTERS, RESOLVED, AdaptersRecord
from posttrain.run.rows import METRICS, METRICS_KEYS, MetricsRow, RowError, parse_row, row_line

#: Figures worth a place on the console, the most telling first; what ends in `/` begins several names.
SHOWN = (
    *(REWARD_MEAN, LOSS, HELD_OUT_LOSS, HELD_OUT_PREFERRED, ACCURACY),
    *(EPISODE_TOOL_CALLS, ENTROPY, GRAD_NORM, TIME_STEP),
)
MAX_SHOWN = 4
#: Seconds between lines where the console is a file or a pipe.
LINE_INTERVAL = 10.0
#: Seconds between looks at the figures that workers write.
FOLLOW_INTERVAL = 1.0

logger = logging.getLogger(__name__)


class TrackerError(RuntimeError):
    """A tracker named in the config cannot be used."""


class Sink(Protocol):
    """Something that shows or stores figures."""

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Take the figures of one step; values may be NaN or infinite."""
        ...

    def close(self) -> None:
        """Write out what is pending."""
        ...


class Tracker:
    """A run's figures: one row a call in `metrics.jsonl`, progress on the console, other sinks by name.

    A row is `{"stage", "step", "time" (Unix seconds), <figure>: number or null, …}`; NaN and infinity
    are null, since JSON has neither.

    Args:
        run: The run's directory.
        names: Further sinks: `tensorboard`, `wandb`, `trackio` (`console` is always on).

    Raises:
        TrackerError: If a name is unknown, its package is not installed, or it does not start.

    Example:
        with Tracker(run, ["tensorboard"]) as tracker:
            tracker.start("sft", total_steps=800)
            tracker.log("sft", 10, {"loss": 2.31, "grad_norm": 0.8})
    """

    def __init__(self, run: RunDir, names: Sequence[str] = ()) -> None:
        self._path = run.path / METRICS
        self._console = Console(sys.stderr)
        self._sinks = {name: _open_sink(name, run) for name in names if name != "console"}

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, stage: str, total_steps: int) -> None:
        """Tell the console how long a stage is."""
        self._console.start(stage, total_steps)

    def log(self, stage: str, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Record the figures of a stage's step.

        Raises:
            ValueError: If a figure is named like one of the row's own keys.
            DiskFull: If `metrics.jsonl` cannot grow.
        """
        values = {name: float(value) for name, value in metrics.items()}
        if clash := [name for name in METRICS_KEYS if name in values]:
            raise ValueError(f"a metric cannot be called {clash[0]!r}: rows of metrics.jsonl use that key")
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append(MetricsRow(stage, step, round(time.time(), 3), finite))
        self._console.log(stage, step, values)
        for name, sink in list(self._sinks.items()):
            try:
                sink.log(stage, step, values)
            # Whatever a tracker's server does, it must not end a run whose figures are on the disk.
            except Exception as error:
                logger.warning("tracker %s failed and is left out from here on: %r", name, error)
                del self._sinks[name]

    def rewind(self, stage: str, step: int) -> None:
        """Drop a stage's rows beyond a step: a resumed stage will log them again."""
        if self._path.is_file():
            kept = _rows_up_to(self._path.read_bytes(), stage, step)
            write_atomic(self._path, b"".join(kept).decode())

    def close(self) -> None:
        """Finish the console's line and every sink."""
        self._console.close()
        for sink in self._sinks.values():
            sink.close()

    def _append(self, row: MetricsRow) -> None:
        """Add a row; one that a crash or a full disk left half written is dropped first."""
        line = row_line(row).encode()
        with explaining_full_disk(self._path), self._path.open("ab+", buffering=0) as file:
            size = file.tell()
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    size = file.truncate(self._path.read_bytes().rfind(b"\n") + 1)
            if file.write(line) != len(line):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Console:
    """Progress of the stage under way: a bar on a terminal, a line now and then elsewhere.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage = ""
        self._total: int | None = None
        self._bar: tqdm | None = None
        self._last_line = -math.inf

    def start(self, stage: str, total_steps: int | None) -> None:
        """Begin a stage's bar or lines."""
        self.close()
        self._stage, self._total, self._last_line = stage, total_steps, -math.inf
        if self._stream.isatty():
            self._bar = tqdm(total=total_steps, desc=stage, unit="step", file=self._stream)

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Show where the stage stands."""
        if stage != self._stage:
            self.start(stage, None)
        shown = _shown(metrics)
        figures = "  ".join(f"{name} {metrics[name]:.4g}" for name in shown)
        # What is measured on held-out samples comes rarely, and is what one waits for.
        awaited = step == self._total or any(name.startswith(HELD_OUT) for name in shown)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(figures)
        elif awaited or time.monotonic() - self._last_line >= LINE_INTERVAL:
            self._last_line = time.monotonic()
            of_total = f"/{self._total}" if self._total else ""
            self._stream.write(f"{stage}  step {step}{of_total}  {figures}".rstrip() + "\n")
            self._stream.flush()

    def say(self, text: str) -> None:
        """Show a line of its own."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the bar as it stands and go to a new line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def showing_progress(run: RunDir, stage: str, total_steps: int) -> Iterator[None]:
    """Show on this process's console what a stage's workers write: what they adapt, and `metrics.jsonl`.

    Args:
        run: The run's directory.
        stage: The stage under way.
        total_steps: Its length.
    """
    console = Console(sys.stderr)
    console.start(stage, total_steps)
    path = run.path / METRICS
    done = threading.Event()
    begun_at = path.stat().st_size if path.is_file() else 0

    adapters = run.path / stage / ADAPTERS
    adapted_before = _time_of(adapters)

    def follow() -> None:
        position, ended, told = begun_at, False, False
        while not ended:
            ended = done.wait(FOLLOW_INTERVAL)
            if not told and _time_of(adapters) != adapted_before and (found := AdaptersRecord.read(adapters)):
                console.say(f"{stage}: {found.text}")
                told = True
            size = path.stat().st_size if path.is_file() else 0
            position = 0 if size < position else position  # a resumed stage has rewound the file
            if size == position:
                continue
            with path.open("rb") as file:
                file.seek(position)
                complete, _, _ = file.read(size - position).rpartition(b"\n")
            position += len(complete) + 1 if complete else 0
            for row in _whole_rows(complete):
                if row.stage == stage:
                    console.log(stage, row.step, _with_nan(row.figures))

    follower = threading.Thread(target=follow, name="progress", daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
        console.close()


def _time_of(path: Path) -> int | None:
    """Return when a file was last written; None if there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None


class TensorBoard:
    """TensorBoard's event files in `<run>/tensorboard`, written without torch or TensorFlow."""

    def __init__(self, run: RunDir) -> None:
        writer = _import("tensorboard", "tensorboard.summary.writer.event_file_writer")
        self._events = _import("tensorboard", "tensorboard.compat.proto.event_pb2")
        self._summaries = _import("tensorboard", "tensorboard.compat.proto.summary_pb2")
        self._writer = writer.EventFileWriter(str(run.path / "tensorboard"))

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add one scalar a figure, called `<stage>/<figure>`."""
        values = [
            self._summaries.Summary.Value(tag=tag, simple_value=value)
            for tag, value in _with_stage(stage, metrics).items()
        ]
        summary = self._summaries.Summary(value=values)
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run in Weights & Biases, under the project `posttrain`; a resumed run goes on in the same one."""

    def __init__(self, run: RunDir) -> None:
        wandb = _import("wandb", "wandb")
        self._run = wandb.init(
            project="posttrain",
            name=run.path.name,
            id=hashlib.sha256(str(run.path).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(run.path),
            config=json.loads((run.path / RESOLVED).read_text()),
        )
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log `<stage>/<figure>` against `<stage>/step`, since every stage counts from one."""
        if stage not in self._stages:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log(_with_stage(stage, {"step": step, **metrics}))

    def close(self) -> None:
        """Wait for what is still to be sent."""
        self._run.finish()


class Trackio:
    """A run in trackio, under the project `posttrain`; a resumed run goes on in the same one."""

    def __init__(self, run: RunDir) -> None:
        config = json.loads((run.path / RESOLVED).read_text())
        self._run = _import("trackio", "trackio").init(
            project="posttrain", name=run.path.name, resume="allow", config=config, embed=False
        )

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log `<stage>/<figure>` and `<stage>/step`, since every stage counts from one."""
        self._run.log(_with_stage(stage, {"step": step, **metrics}))

    def close(self) -> None:
        """Wait for what is still to be written."""
        self._run.finish()


SINKS: dict[str, type[TensorBoard] | type[WeightsAndBiases] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def _with_stage(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{name}": value for name, value in metrics.items()}


def _open_sink(name: str, run: RunDir) -> Sink:
    if name not in SINKS:
        raise TrackerError(f"trackers: {name!r} is not one of console, {', '.join(SINKS)}")
    try:
        return SINKS[name](run)
    except TrackerError:
        raise
    except Exception as error:
        raise TrackerError(
            f"trackers: {name} did not start ({error!r}). Repair it, or take it out of `trackers`"
        ) from error


def _import(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TrackerError(
            f"trackers: {package} is named, but it cannot be imported ({error}). Install it with"
            f" `pip install {package}`, or take it out of `trackers`"
        ) from error


def _shown(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the figures for which the console has room."""
    named = (name for shown in SHOWN for name in metrics if _matches(name, shown))
    return list(dict.fromkeys(named))[:MAX_SHOWN]


def _matches(name: str, shown: str) -> bool:
    return name.startswith(shown) if shown.endswith("/") else name == shown


def _with_nan(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in figures.items()}


def _whole_rows(lines: bytes) -> Iterator[MetricsRow]:
    """Yield the rows among lines of metrics.jsonl, without those that a crash cut."""
    for line in lines.splitlines():
        with suppress(RowError):
            yield parse_row(line, MetricsRow)


def _rows_up_to(lines: bytes, stage: str, step: int) -> Iterator[bytes]:
    """Yield the whole lines of metrics.jsonl but those of `stage` beyond `step`."""
    for line in lines.splitlines(keepends=True):
        try:
            row = parse_row(line, MetricsRow)
        except RowError:
            continue
        if line.endswith(b"\n") and (row.stage != stage or row.step <= step):
            yield line
