"""`posttrain submit` on a real Ray cluster with its dashboard: the same file as a job, and resumed as one."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RECIPE = """
name: jobs
model: {dtype: float32}
cluster: {num_gpus: 0}
stages:
  - {stage: tiny_model, max_steps: 2, global_batch_size: 4}
  - stage: sft
    data: {mixture: {greetings: 1.0}}
    max_steps: 2
    save_steps: 1
"""
GREETINGS = """
name: greetings
description: Greetings.
licence: Apache-2.0
source: {generator: greet.py:write}
"""
GENERATOR = """
import json
def write(folder):
    rows = [{"id": str(n), "messages": [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in
            (("user", "hello"), ("assistant", f"hello {n}"))]} for n in range(8)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a head's dashboard, and the variables that whoever submits to it needs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = dict(os.environ) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ""}  # none of our code is there
    environment["PATH"] = (
        f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as where a venv is activated
    )
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # names of sockets must be short
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
        command += ["--port=0", "--object-store-memory=100000000", f"--temp-dir={folder}"]
        command += ["--include-dashboard=true", f"--dashboard-port={port}", "--node-ip-address=127.0.0.1"]
        # Any free one: without its fixed port, which anyone may have, the node's agent takes no job.
        command += ["--dashboard-agent-listen-port=0"]
        log = Path(folder, "head.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 90
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", environment
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # `ray start --block` takes over 20 s of a SIGTERM
            process.wait()


def test_a_job_runs_the_file_and_goes_on_with_it(head: tuple[str, dict[str, str]], tmp_path: Path):
    address, environment = head
    folder, runs = tmp_path / "mine", tmp_path / "runs"
    (folder / "datasets_cfg").mkdir(parents=True)
    (folder / "run.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "greet.py").write_text(GENERATOR, encoding="utf-8")
    (folder / "datasets_cfg" / "greetings.yaml").write_text(GREETINGS, encoding="utf-8")
    root = Path(__file__).parents[2]
    environment = environment | {"PYTHONPATH": str(root), "POSTTRAIN_CACHE": str(tmp_path / "cache")}

    def submit(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "posttrain.cli", "submit", "run.yaml", f"output_dir={runs}"]
        return subprocess.run(
            [*command, "--address", address, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    first = submit()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "report:" in first.stdout  # the job's own output
    run = runs / "jobs"
    assert json.loads((run / "sft" / "stage.json").read_text())["final"] == "checkpoint-2"
    learned = (run / "metrics.jsonl").read_text()
    again = submit()
    assert again.returncode == 2  # as `posttrain run` does of a directory that is used
    assert "--resume" in again.stdout
    resumed = submit("--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert (run / "metrics.jsonl").read_text() == learned  # nothing was learned twice
