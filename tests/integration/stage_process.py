"""Supervised stages in processes of their own, which die where a test says.

As a script it loads the libraries once and then forks a process for each rank of each job, a line of JSON on
its standard input. Nothing has run in it by then that a fork would break: it has a single thread.
"""

import functools
import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer

from posttrain.config import RunConfig
from posttrain.quickstart.pretrain import DenseTrainer
from posttrain.run.directory import RunDir
from posttrain.run.process import STOP
from posttrain.training.supervised.trl_stage import StageTrainer
from tests.stage_jobs import job_of, worker_of

FILE_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
TIMEOUT = 300
#: What keeps libraries from starting threads where they are loaded.
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class StageProcesses:
    """The forking process, as a test sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | SINGLE_THREADED | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def attempt(self, run: RunDir, checkpoint: Path | None, attempt: int, **job: Any) -> dict[str, Any]:
        """Begin a run's only stage, or go on with it.

        Args:
            run: Its config is the `resolved.json`.
            checkpoint: What the stage starts from.
            attempt: Number under which it notes what it has seen.
            **job: `kill_after` (seconds), `kill_at` (file operation within saves), `stop_at` (step in which
                the run is asked to stop), `without` (a state that is not restored, a negative control).

        Returns:
            `codes`, of every rank; `seconds`; `error`, the type and text of the first rank's, if any.
        """
        job |= {"run": str(run.path), "checkpoint": str(checkpoint), "attempt": attempt}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT)


def serve() -> None:
    """Fork the ranks of one job after another."""
    gc.freeze()  # nothing that is loaded is garbage, and the children need not look
    for line in sys.stdin:
        assert len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208
        job = json.loads(line)
        config = RunConfig.model_validate_json((Path(job["run"]) / "resolved.json").read_text())
        begun = time.monotonic()
        ranks = config.stages[0].num_workers
        store = Path(job["run"]) / f".store-{job['attempt']}"
        children = [_fork(functools.partial(_work, job, config, rank, store)) for rank in range(ranks)]
        codes = _wait(children, begun + job.get("kill_after", TIMEOUT))
        error = Path(job["run"]) / "error"
        told = {"codes": codes, "seconds": time.monotonic() - begun}
        told["error"] = error.read_text() if error.is_file() else ""
        error.unlink(missing_ok=True)
        print(json.dumps(told), flush=True)


def _fork(action: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        action()
        os._exit(0)
    return child


def _wait(children: list[int], deadline: float) -> list[int]:
    """Exit codes of all; at the deadline, or as soon as one has died, the others are killed."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in [child for child in children if child not in codes]:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline or any(codes.values()):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return [codes[child] for child in children]


def _work(job: dict[str, Any], config: RunConfig, rank: int, store: Path) -> None:
    """What a rank does, once forked."""
    ranks = config.stages[0].num_workers
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # asked for, and not used
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    run, stage = RunDir(Path(job["run"])), config.stages[0]
    _note_what_is_seen(run, rank, job["attempt"], job.get("stop_at", -1))
    _die_within_a_save(run.path / "operations", job.get("kill_at", -1))
    _leave_out(job.get("without", ""))
    try:
        worker_of(stage)(job_of(config, run, Path(job["checkpoint"])))
    except BaseException as error:
        (run.path / "error").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def _note_what_is_seen(run: RunDir, rank: int, attempt: int, stop_at: int) -> None:
    """Write down of every micro-batch its step, its content, the random state before it, and its loss."""
    file = os.open(run.path / f"seen-{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noting(step: Callable[..., Any], number: Callable[[Any], int]) -> Callable[..., Any]:
        def noted(self: Any, *arguments: Any, **keywords: Any) -> Any:
            state = torch.get_rng_state()
            loss = step(self, *arguments, **keywords)
            content = next(each for each in arguments if not isinstance(each, torch.nn.Module))
            content = content["input_ids"] if isinstance(content, dict) else content.pixels
            note = {
                "attempt": attempt,
                "step": number(self),
                "data": hashlib.sha256(content.numpy().tobytes()).hexdigest(),
                "random": hashlib.sha256(state.numpy().tobytes()).hexdigest(),
                "loss": float(loss).hex(),
            }
            os.write(file, json.dumps(note).encode() + b"\n")
            if note["step"] == stop_at:
                (run.path / STOP).touch()
            return loss

        return noted

    StageTrainer.micro_step = noting(StageTrainer.micro_step, lambda self: self.state.global_step + 1)
    DenseTrainer.step = noting(DenseTrainer.step, lambda self: self.updates.schedule.last_epoch)


def _die_within_a_save(count: Path, kill_at: int) -> None:
    """Be killed at a file operation within saves, and count them."""
    saving, done, fsync = False, 0, os.fsync

    def operation() -> None:
        nonlocal done
        if saving and done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        done += saving

    def marking(save: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*arguments: Any, **keywords: Any) -> Any:
            nonlocal saving
            before, saving = saving, True
            try:
                return save(*arguments, **keywords)
            finally:
                saving = before
                if not saving:
                    count.write_text(str(done))

        return marked

    def synced(descriptor: int) -> None:
        operation()
        fsync(descriptor)

    StageTrainer._save_checkpoint = marking(StageTrainer._save_checkpoint)
    RunDir.save_checkpoint = marking(RunDir.save_checkpoint)
    os.fsync = synced
    sys.addaudithook(lambda event, _: operation() if event in FILE_OPERATIONS else None)


def _leave_out(state: str) -> None:
    """Go on without something that a checkpoint holds."""
    if state == "random state":
        StageTrainer._load_rng_state = lambda self, checkpoint: None
    elif state == "figures":
        StageTrainer._load_rng_state = Trainer._load_rng_state
    elif state == "optimizer":
        StageTrainer._load_optimizer_and_scheduler = lambda self, checkpoint: None
    elif state == "position":
        train = StageTrainer.train

        def from_the_first_draw(self: Any, *arguments: Any, **keywords: Any) -> Any:
            self.args.ignore_data_skip = True
            return train(self, *arguments, **keywords)

        StageTrainer.train = from_the_first_draw


if __name__ == "__main__":
    serve()
