"""A real HTTP server that stands in for a model's endpoint, and a driver that tells of GPUs."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain import chat_endpoint


@dataclass
class Reply:
    """What the server sends; `stall_s` seconds late.

    Attributes:
        body: The reply's bytes.
        status: HTTP status; 0 hangs up without a word.
        headers: Besides Content-Length, with _ for -.
        stall_s: Seconds before it is sent.
        length: Content-Length, where it is not the body's.
    """

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stall_s: float = 0.0
    length: int | None = None


class ChatServer(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint.

    Attributes:
        respond: Makes the reply to a request.
        requests: Every request's body, in order of arrival.
        headers: The headers of each, by their names in lower case.
        peak: Most requests that were there at once.
        lock: For what `respond` counts.
        stop: Ends every stall.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond: Callable[[dict[str, Any]], Reply] = lambda body: self.say("ok")
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peak = self.now = 0
        self.lock = threading.Lock()
        self.stop = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def send(
        self,
        body: bytes,
        status: int = 200,
        stall_s: float = 0.0,
        length: int | None = None,
        **headers: str,
    ) -> Reply:
        return Reply(body, status, headers, stall_s, length)

    def say(self, text: Any, finish_reason: str = "stop", **message: Any) -> Reply:
        said = {"role": "assistant", "content": text} | message
        choice = {"message": said, "finish_reason": finish_reason}
        return self.send(json.dumps({"choices": [choice]}).encode())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(body)
            server.headers.append({key.lower(): value for key, value in self.headers.items()})
            server.now += 1
            server.peak = max(server.peak, server.now)
        try:
            reply = server.respond(body)
            server.stop.wait(reply.stall_s)
        finally:
            with server.lock:
                server.now -= 1
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        if reply.length is not None or not reply.status:
            self.close_connection = True
        if not reply.status:
            return
        length = len(reply.body) if reply.length is None else reply.length
        try:
            self.send_response(reply.status)
            for name, value in ({"Content-Length": str(length)} | reply.headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(reply.body)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Nothing on the terminal."""


@pytest.fixture(scope="session")
def start_chat_server() -> Iterator[Callable[[], ChatServer]]:
    """Starts servers, which run until the session ends; pauses between attempts are short."""
    started: list[ChatServer] = []

    def start() -> ChatServer:
        server = ChatServer()
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        return server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_endpoint, "FIRST_PAUSE_S", 0.01)
        yield start
    for server in started:
        _stop(server)


@pytest.fixture
def chat_server(start_chat_server: Callable[[], ChatServer]) -> Iterator[ChatServer]:
    """A running server of a test's own."""
    server = start_chat_server()
    yield server
    _stop(server)


def _stop(server: ChatServer) -> None:
    if not server.stop.is_set():
        server.stop.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes `nvidia-smi` list so many H100s; with none it fails as where there is no driver."""
    folder = tmp_path / "driver"
    folder.mkdir()
    script = folder / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def set_up(gpus: int) -> None:
        lines = "".join(f"echo 'GPU-{n}, 81559, NVIDIA H100 80GB HBM3'\n" for n in range(gpus))
        script.write_text(f"#!/bin/sh\n{lines or 'exit 9'}\n")
        script.chmod(0o755)

    return set_up
