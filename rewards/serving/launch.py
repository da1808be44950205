"""Start a reward server for a run, as a process that ends with the run."""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rewards.serving.client import RewardClient, RewardServerUnavailable
from rewards.serving.config import PARENT_VARIABLE, TOKEN_VARIABLE


class RewardServer:
    """A server process that belongs to this process; a context manager that ends it.

    Attributes:
        url: Its address.
        token: Its bearer token.
        process: The operating system's process.
    """

    def __init__(self, url: str, token: str, process: subprocess.Popen[bytes]):
        self.url = url
        self.token = token
        self.process = process

    def close(self) -> None:
        """End the server."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> "RewardServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_server(
    references: Sequence[str],
    token: str = "",
    base_dir: Path | None = None,
    log: Path | None = None,
    timeout: float = 120.0,
    host: str = "127.0.0.1",
    judge_budget: Path | None = None,
) -> RewardServer:
    """Start `posttrain rewards serve` on a free port of an address and wait until it answers.

    The server ends with this process, however that ends. It has a session of its own, so Ctrl-C ends the run
    first and the run can still be saved.

    Args:
        references: The rewards to serve.
        token: Bearer token; "" makes one.
        base_dir: Folder against which file references are resolved.
        log: File that the server's output is appended to; None for this process's.
        timeout: Seconds to wait for it.
        host: Address to listen on, one of this machine's; every request needs the token.
        judge_budget: File of what judges may spend; None for no limit.

    Raises:
        RewardServerUnavailable: If it ended or did not answer in time, with the end of its log.
    """
    token = token or secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        url_file = Path(directory) / "url"
        command = [sys.executable, "-m", "posttrain.cli", "rewards", "serve", *references]
        command += ["--host", host, "--port", "0", "--url-file", str(url_file)]
        command += ["--base-dir", str((base_dir or Path()).absolute())]
        command += ["--image-root", "/"]  # it has this process's rights, and only this process has the token
        output = stack.enter_context(log.open("ab")) if log else None
        if judge_budget is not None:
            command += ["--judge-budget", str(judge_budget.absolute())]
        process = subprocess.Popen(
            command,
            env=os.environ | {TOKEN_VARIABLE: token, PARENT_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and process.poll() is None:
            if url_file.exists():
                server = RewardServer(url_file.read_text(encoding="utf-8"), token, process)
                client = RewardClient(server.url, token)
                answers = client.health()
                client.close()
                if answers:
                    return server
            time.sleep(0.05)
        ended = process.poll()
        process.kill()
        process.wait()
    what = f"did not answer within {timeout:g} s" if ended is None else f"ended at once (exit code {ended})"
    said = log.read_text(encoding="utf-8", errors="replace")[-2000:].strip() if log else ""
    raise RewardServerUnavailable(f"the reward server {what}{f'; {log} ends with: {said}' if said else ''}")
