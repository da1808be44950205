"""A judge over real HTTP that gives honest verdicts, except where a test makes it misbehave."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rewards.judge import client


@dataclass
class Reply:
    """What the server sends; `stall_s` seconds late."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stall_s: float = 0.0


@dataclass
class FakeJudge:
    """The server's behaviour and what it was asked.

    `verdict` maps an aspect to its score; `behave`, where set, replies in its stead.
    """

    url: str = ""
    verdict: Callable[[str], int] = lambda aspect: 1 if aspect == "correct" else 10
    behave: Callable[[dict[str, Any]], Reply] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, request: dict[str, Any]) -> Reply:
        return self.behave(request) if self.behave else self.say(self.honest(request))

    def send(self, body: bytes, status: int = 200, stall_s: float = 0.0, **headers: str) -> Reply:
        return Reply(body, status, headers, stall_s)

    def say(self, text: str | None, finish_reason: str = "stop") -> Reply:
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        return self.send(json.dumps({"choices": [choice]}).encode())

    def honest(self, request: dict[str, Any]) -> str:
        """A verdict of the form that the request's schema asks for."""
        wanted = request["response_format"]["json_schema"]["schema"]["properties"]
        verdict: dict[str, Any] = {"reason": "Because.", "nonce": self.nonce(request)}
        if "winner" in wanted:
            return json.dumps(verdict | {"winner": "A"})
        return json.dumps(verdict | {"scores": {a: self.verdict(a) for a in wanted["scores"]["properties"]}})

    @staticmethod
    def text(request: dict[str, Any]) -> str:
        """What the user's message says."""
        content = request["messages"][1]["content"]
        return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)

    def nonce(self, request: dict[str, Any]) -> str:
        return re.findall(r"nonce of your verdict is (\w+)", self.text(request))[-1]

    def section(self, request: dict[str, Any], title: str = "ANSWER") -> str:
        """What stands between a section's marks."""
        nonce, text = self.nonce(request), self.text(request)
        return text.partition(f"<<<{title} {nonce}\n")[2].partition(f"\n{title} {nonce}>>>")[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    judge: FakeJudge

    def do_POST(self) -> None:
        judge, request = self.judge, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.lock:
            judge.asked.append(request)
            judge.headers.append({key.lower(): value for key, value in self.headers.items()})
            judge.at_once += 1
            judge.most_at_once = max(judge.most_at_once, judge.at_once)
        reply = judge.reply(request)
        judge.stop.wait(reply.stall_s)
        with judge.lock:
            judge.at_once -= 1
        try:
            self.send_response(reply.status)
            for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(reply.body)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        pass


@pytest.fixture
def judge_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJudge]:
    """A judge on a free port; the environment names it, and pauses between attempts are short."""
    judge = FakeJudge()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"judge": judge}))
    server.daemon_threads = True
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv(client.URL_VARIABLE, judge.url)
    monkeypatch.delenv(client.KEY_VARIABLE, raising=False)
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.005)
    yield judge
    judge.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()
