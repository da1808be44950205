"""A model's endpoint that answers by a function, and fails as a test asks."""

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest


class FakeEndpoint:
    """A server that plays a curation's model.

    Attributes:
        server: The server.
        answer: The text (or the whole message) for a request.
        fault: What goes wrong with a request, given it and how often it came before; "" for nothing.
        delay: Seconds that an answer takes.
    """

    def __init__(self, server: Any) -> None:
        self.server = server
        server.respond = self.respond
        self.answer: Callable[[dict[str, Any]], Any] = lambda body: "ok"
        self.fault: Callable[[dict[str, Any], int], str] = lambda body, before: ""
        self.delay = 0.0
        self.came: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def requests(self) -> list[dict[str, Any]]:
        return self.server.requests

    def respond(self, body: dict[str, Any]) -> Any:
        with self.server.lock:
            key = json.dumps(body)
            before, self.came[key] = self.came[key], self.came[key] + 1
        time.sleep(self.delay)
        fault, server = self.fault(body, before), self.server
        if fault.isdigit():
            waiting = {"Retry_After": "0.01"} if fault == "429" else {}
            return server.send(b'{"error": "as told"}', int(fault), **waiting)
        message = self.answer(body)
        message = {"content": message} if isinstance(message, str) else dict(message)
        reply = server.say(message.pop("content"), message.pop("finish_reason", "stop"), **message)
        replies = {
            "nonsense": b"\xff\x00 not json",
            "html": b"<html>busy</html>",
            "no text": b'{"choices": [{"message": {"role": "assistant"}}]}',
            "null": b"null",
        }
        if fault == "hang up":
            return server.send(b"", 0)
        if fault == "cut off":
            return server.send(reply.body[: len(reply.body) // 2], length=len(reply.body))
        if fault == "stall":
            reply.stall_s = 2
        return server.send(replies[fault]) if fault in replies else reply


@pytest.fixture
def endpoint(chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> FakeEndpoint:
    """Start an endpoint that no environment variable names."""
    monkeypatch.delenv("POSTTRAIN_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("POSTTRAIN_ENDPOINT_API_KEY", raising=False)
    return FakeEndpoint(chat_server)


@pytest.fixture(scope="module")
def shared_endpoint(start_chat_server: Callable[[], Any]) -> FakeEndpoint:
    """Start one endpoint for a whole module, for tests that only read its results."""
    return FakeEndpoint(start_chat_server())
