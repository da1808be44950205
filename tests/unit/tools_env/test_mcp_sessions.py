"""Sessions over HTTP with a server that counts them, many at once, and with an event loop that is stuck."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from posttrain.failures import WorldError
from posttrain.types import Sample, text_message
from tests.unit.tools_env.test_mcp import call, hostile, said
from tools_env import ToolEnvironment, deadline, load_tools


class Counting(BaseHTTPRequestHandler):
    """A server of the protocol before 2026, which has sessions; its calls say how many are open."""

    opened: set[str]
    ever: int

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        session, kept = self.headers.get("Mcp-Session-Id"), type(self)
        if "id" not in request:
            self.send_response(202)
            self.end_headers()
            return
        answer: dict[str, Any] = {"error": {"code": -32601, "message": "no such method"}}
        if request["method"] == "initialize":
            kept.ever += 1
            session = f"session-{kept.ever}"
            kept.opened.add(session)
            info = {"capabilities": {"tools": {}}, "serverInfo": {"name": "counting", "version": "1"}}
            answer = {"result": info | {"protocolVersion": request["params"]["protocolVersion"]}}
        elif request["method"] == "tools/list":
            answer = {"result": {"tools": [{"name": "which", "inputSchema": {"type": "object"}}]}}
        elif request["method"] == "tools/call":
            answer = {"result": {"content": [{"type": "text", "text": str(session)}]}}
        content = json.dumps({"jsonrpc": "2.0", "id": request["id"]} | answer).encode()
        self.send_response(200)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        if session is not None:
            self.send_header("Mcp-Session-Id", session)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.send_error(405)

    def do_DELETE(self) -> None:
        type(self).opened.discard(self.headers["Mcp-Session-Id"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name there
        pass


@pytest.fixture
def counting() -> Iterator[tuple[type[Counting], dict[str, Any]]]:
    handler = type("Counting", (Counting,), {"opened": set(), "ever": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler, {"mcp": "counting", "url": f"http://127.0.0.1:{server.server_address[1]}/mcp"}
        server.shutdown()


def begin(tools: list[Any], folder: Path) -> ToolEnvironment:
    environment = ToolEnvironment(tools, 9, folder)
    environment.start(Sample("one", (text_message("user", "Go."),)))
    return environment


def test_every_episode_has_a_session_over_http_that_is_closed(counting: Any, tmp_path: Path) -> None:
    server, reference = counting
    tools = load_tools([reference], tmp_path)
    assert (server.ever, server.opened) == (1, set())  # the one that asked for the tools
    one, other, silent = (begin(tools, tmp_path) for _ in range(3))
    assert said(one.step(call("which"))) == said(one.step(call("which"))) == "session-2"
    assert said(other.step(call("which"))) == "session-3"
    assert server.opened == {"session-2", "session-3"}
    for each in (one, other, silent):
        each.close()
    assert (server.ever, server.opened) == (3, set())


def test_many_at_once_are_served_and_leave_nothing(counting: Any, tmp_path: Path) -> None:
    server, reference = counting
    tools = load_tools([reference, hostile("fine")], tmp_path)
    me = psutil.Process()

    def play(_: int) -> list[str]:
        episode = begin(tools, tmp_path)
        try:
            return [said(episode.step(call(name))) for name in ("which", "go", "which")]
        finally:
            episode.close()

    play(0)
    files, children = me.num_fds(), len(me.children(recursive=True))
    with ThreadPoolExecutor(8) as episodes:
        played = list(episodes.map(play, range(24)))
    assert len({one for one, _, _ in played}) == 24
    assert all(one == again and gone == "gone" for one, gone, again in played)
    assert server.opened == set()
    assert len(me.children(recursive=True)) == children
    assert me.num_fds() < files + 8


def test_a_blocked_event_loop_fails_its_sessions_and_they_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools_env.mcp.connection.CLOSE_S", 0.2)
    tools = load_tools([hostile("fine")], tmp_path)
    episode, release = begin(tools, tmp_path), threading.Event()
    children = set(psutil.Process().children(recursive=True))
    episode.step(call("go"))
    started = set(psutil.Process().children(recursive=True)) - children
    assert started

    async def block() -> None:
        release.wait(60)

    with pytest.raises(deadline.DeadlineError):
        deadline.call_with_deadline(block, 0.1)
    with pytest.raises(WorldError, match="MCP server 'hostile'"):
        episode.step(call("go"))  # in another loop, which is not the connection's
    closing = threading.Thread(target=episode.close)
    closing.start()
    release.set()
    closing.join(30)
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive
    after = begin(tools, tmp_path)
    assert said(after.step(call("go"))) == "gone"
    after.close()
