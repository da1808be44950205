"""A real HTTP server that stands in for a model: it answers by a function, and fails where it is told to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class FakeEndpoint(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint.

    Attributes:
        answer: The text (or the whole message) for a request.
        fault: What goes wrong with a request, given it and how often it came before; "" for nothing.
        requests: Every request's body, in order of arrival.
        keys: The Authorization header of each.
        peak: Most requests that were there at once.
        delay: Seconds that an answer takes.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[dict[str, Any]], Any] = lambda body: "ok"
        self.fault: Callable[[dict[str, Any], int], str] = lambda body, before: ""
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.peak = self.now = 0
        self.delay = 0.0
        self.lock = threading.Lock()
        self.came: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        with server.lock:
            server.now += 1
            server.peak = max(server.peak, server.now)
            server.requests.append(body)
            server.keys.append(self.headers.get("Authorization"))
            before = server.came.get(raw.decode(), 0)
            server.came[raw.decode()] = before + 1
        try:
            time.sleep(server.delay)
            self._reply(body, server.fault(body, before))
        finally:
            with server.lock:
                server.now -= 1

    def _reply(self, body: dict[str, Any], fault: str) -> None:
        if fault == "hang up":
            self.close_connection = True
            return
        if fault == "stall":
            time.sleep(2)
        if fault.isdigit():
            self._send(int(fault), b'{"error": "as told"}')
            return
        message = self.server.answer(body)
        message = {"role": "assistant", "content": message} if isinstance(message, str) else message
        finish = message.pop("finish_reason", "stop")
        reply = json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()
        replies = {
            "nonsense": b"\xff\x00 not json",
            "html": b"<html>busy</html>",
            "no text": b'{"choices": [{"message": {"role": "assistant"}}]}',
            "null": b"null",
        }
        if fault == "cut off":
            self._send(200, reply[: len(reply) // 2], length=len(reply))
            self.close_connection = True
            return
        self._send(200, replies.get(fault, reply))

    def _send(self, status: int, reply: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply) if length is None else length))
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Nothing on the terminal."""


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    """A running endpoint."""
    server = FakeEndpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.data.curation.endpoint.FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv("POSTTRAIN_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("POSTTRAIN_ENDPOINT_API_KEY", raising=False)
