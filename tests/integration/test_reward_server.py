"""The reward server as runs use it: its own process, reached over HTTP, that may die at any time."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from posttrain.types import RewardInput
from rewards.manager import RewardManager, RewardSpec
from rewards.serving.client import RewardClient, RewardRequestRefused, RewardServerUnavailable
from rewards.serving.launch import RewardServer, start_server

PLUGIN = """
from rewards import reward

@reward("neatness")
def neatness(x, longest=10):
    return 1.0 if len(x.answer) <= longest else 0.0
"""
SPECS = [{"name": "answer_accuracy"}, {"name": "mine.py:neatness", "weight": 0.5, "params": {"longest": 3}}]
REFERENCES = ["answer_accuracy", "mine.py:neatness", "math"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    (path / "mine.py").write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RewardServer]:
    with start_server(REFERENCES, base_dir=folder, log=folder / "server.log") as server:
        yield server


def episodes(*answers: str) -> list[RewardInput]:
    return [RewardInput((), (), answer, ground_truth="1/2") for answer in answers]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: object, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    below = [int(child) for child in children.read_text().split()] if children.exists() else []
    return below + [deeper for child in below for deeper in descendants(child)]


def test_scores_as_in_process_over_several_batches(server: RewardServer, folder: Path) -> None:
    inputs = episodes(*["1/2", "0.5", "\\frac{2}{4}", "no idea", ""] * 40)
    specs = [*SPECS, {"name": "math", "weight": 2.0}]
    over_http = RewardClient(server.url, server.token).score(specs, inputs)
    assert over_http == RewardManager([RewardSpec(**spec) for spec in specs], folder).score(inputs)
    assert [result.total for result in over_http[:3]] == [3.5, 2.5, 2.0]


def test_only_with_the_token_and_only_the_run_s_rewards(server: RewardServer) -> None:
    for client in (RewardClient(server.url), RewardClient(server.url, "wrong")):
        with pytest.raises(RewardRequestRefused, match=r"401.*token"):
            client.score(SPECS, episodes("1/2"))
    for name in ("tool_calls", "subprocess:run", "mine.py:other"):
        with pytest.raises(RewardRequestRefused, match="not served here"):
            RewardClient(server.url, server.token).score([{"name": name}], episodes("1/2"))


def test_a_misspelt_parameter_is_refused_with_the_nearest_one(server: RewardServer) -> None:
    specs = [{"name": "mine.py:neatness", "params": {"longst": 3}}]
    with pytest.raises(RewardRequestRefused, match=r"422.*'longst'; did you mean 'longest'"):
        RewardClient(server.url, server.token).score(specs, episodes("1/2"))


def test_raw_attacks_leave_it_alive(server: RewardServer) -> None:
    address = (httpx.URL(server.url).host, httpx.URL(server.url).port)
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
    head += "Content-Type: application/json\r\n"
    for rest in (
        "Content-Length: 5\r\n\r\n" + "x" * 5000,  # says less than it sends
        "Content-Length: 5000\r\n\r\nshort",  # says more than it sends
        "Content-Length: -1\r\n\r\n",
        "Content-Length: 99999999999\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "\0\r\n\r\n",
    ):
        with socket.create_connection(address, timeout=5) as connection:  # type: ignore[arg-type]
            connection.sendall((head + rest).encode())
    assert wait_until(RewardClient(server.url, server.token).health)


def test_a_killed_server_is_told_of_and_a_returned_one_is_used(folder: Path) -> None:
    server = start_server(["answer_accuracy"], base_dir=folder)
    client = RewardClient(server.url, server.token, wait=1.0)
    assert client.score(SPECS[:1], episodes("1/2"))[0].total == 1.0
    workers = descendants(server.process.pid)
    server.process.kill()
    server.process.wait()
    begun = time.monotonic()
    with pytest.raises(RewardServerUnavailable, match=r"not scored anything for 1 s .*--resume"):
        client.score(SPECS[:1], episodes("1/2"))
    assert 1.0 <= time.monotonic() - begun < 5.0
    assert len(workers) >= 2
    assert wait_until(lambda: all(gone(pid) for pid in workers))


def test_close_ends_the_server_and_its_workers(folder: Path) -> None:
    with start_server(["answer_accuracy"], base_dir=folder) as server:
        processes = [server.process.pid, *descendants(server.process.pid)]
    assert wait_until(lambda: all(gone(pid) for pid in processes))


def test_the_server_ends_with_the_process_that_started_it(folder: Path) -> None:
    script = (
        "import sys, time; from rewards.serving.launch import start_server\n"
        "print(start_server(['answer_accuracy']).process.pid, flush=True); time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        processes = [pid, *descendants(pid)]
        parent.send_signal(signal.SIGKILL)
    assert wait_until(lambda: all(gone(pid) for pid in processes))


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    log = folder / "broken.log"
    with pytest.raises(RewardServerUnavailable, match=r"(?s)ended at once.*no such file.*nowhere\.py"):
        start_server(["nowhere.py:x"], base_dir=folder, log=log)


class Moody(BaseHTTPRequestHandler):
    """A fault to inject: busy, then broken, then well."""

    answers: ClassVar = [429, 503, 500, 200]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status = self.answers.pop(0)
        body = json.dumps({"results": [{"total": 1.0, "values": {}, "parts": {}, "notes": {}, "errors": {}}]})
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode() if status == 200 else b"not now")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Keep the test's output clean."""


def test_a_busy_or_broken_server_is_asked_again() -> None:
    with HTTPServer(("127.0.0.1", 0), Moody) as moody:
        threading.Thread(target=moody.serve_forever, daemon=True).start()
        client = RewardClient(f"http://127.0.0.1:{moody.server_port}", wait=20)
        assert client.score(SPECS[:1], episodes("1/2"))[0].total == 1.0
        moody.shutdown()
    assert Moody.answers == []
