"""The reward server as replicas on Ray Serve: the same API, the same verdicts."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

import httpx
import pytest

from posttrain.types import RewardInput
from rewards.manager import RewardManager, RewardSpec
from rewards.serving.client import RewardClient
from rewards.serving.config import TOKEN_VARIABLE


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("replicas")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "posttrain.cli", "rewards", "serve", "math", "answer_accuracy"]
    command += ["--replicas", "2", "--port", str(port), "--url-file", str(folder / "url")]
    with (folder / "log").open("wb") as log:
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {TOKEN_VARIABLE: "secret"}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not (folder / "url").exists():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.2)
    yield (folder / "url").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def asked(url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """Ask once more where a proxy drops a connection, as it may on a busy machine and clients expect."""
    for _ in range(3):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(url, headers=headers, trust_env=False)
    return httpx.get(url, headers=headers, trust_env=False)


@pytest.mark.slow
def test_replicas_answer_as_one_server_does(url: str) -> None:
    specs = [RewardSpec("math"), RewardSpec("answer_accuracy", 0.5)]
    inputs = [RewardInput((), (), f"\\boxed{{{i % 7}}}", ground_truth="3") for i in range(300)]
    client = RewardClient(url, "secret")
    assert client.score(specs, inputs) == RewardManager(specs).score(inputs)
    client.close()
    for route in ("/health", "/metrics", "/v1/rewards"):
        assert asked(url + route).status_code == 401
        assert asked(url + route, {"Authorization": "Bearer secret"}).is_success
