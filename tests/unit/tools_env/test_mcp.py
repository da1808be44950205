"""MCP servers as tools: the SDK's own server with pictures, and servers that keep to nothing."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from posttrain.cli.main import main
from posttrain.failures import WorldError
from posttrain.plugins import PluginError
from posttrain.types import EnvironmentReply, Sample, text_message
from tools_env import ToolEnvironment, load_tools

TESTS = Path(__file__).parents[2]
PICTURES = {"mcp": "pictures", "command": sys.executable, "args": [str(TESTS / "mcp_pictures.py")]}
Begin = Callable[..., ToolEnvironment]


def hostile(mode: str, *state: Path, **more: Any) -> dict[str, Any]:
    args = ["-S", "-I", str(TESTS / "mcp_hostile.py"), mode, *map(str, state)]
    return {"mcp": "hostile", "command": sys.executable, "args": args, "tool_timeout_s": 20} | more


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def said(reply: EnvironmentReply) -> str:
    assert reply.message is not None
    return reply.message.text


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    begun: list[ToolEnvironment] = []

    def start(*servers: dict[str, Any], sample: str = "one") -> ToolEnvironment:
        environment = ToolEnvironment(load_tools(servers, tmp_path), 20, tmp_path / "images")
        begun.append(environment)
        environment.start(Sample(sample, (text_message("user", "Go."),)))
        return environment

    yield start
    for each in begun:
        each.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    program = [sys.executable, TESTS / "mcp_pictures.py", str(port)]
    with subprocess.Popen(program, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < until:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/mcp"
        process.kill()


@pytest.fixture(params=["stdio", "http"])
def pictures(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "stdio":
        return PICTURES
    return {"mcp": "pictures", "url": request.getfixturevalue("url")}


def test_the_sdks_server_is_offered_with_texts_pictures_and_errors(begin: Begin, pictures: Any) -> None:
    episode = begin(pictures | {"prefix": "cam_", "enabled_tools": ["snap", "add", "measure", "refuse"]})
    assert list(episode._tools) == ["cam_snap", "cam_add", "cam_measure", "cam_refuse"]
    spec = episode._tools["cam_snap"].spec
    assert spec.description == "Take pictures of a square whose red is given."
    assert spec.parameters["required"] == ["shade"]
    reply = episode.step(call("cam_snap", shade=200, copies=2))
    assert reply.message is not None
    assert [block.type for block in reply.message.content] == ["image", "image", "text"]
    [image] = {ref.path for ref in reply.message.images}
    assert Image.open(image).getpixel((5, 5)) == (200, 0, 0)
    assert episode._images == reply.message.images  # what later calls, and the learner, see
    assert [c.images for c in reply.calls] == [2]
    assert all(c.seconds is not None and 0 < c.seconds < 60 for c in reply.calls)
    first = said(episode.step(call("cam_add", number=2.0)))
    assert first.startswith("2 by")
    assert json.loads(said(episode.step(call("cam_measure")))) == {"width": 64}
    for wrong, told in (
        (call("cam_refuse"), "Error: give a city"),
        (call("cam_snap", shade="dark"), "Error: arguments['shade'] of cam_snap: 'dark' is not of type"),
        (call("cam_snap"), "Error: arguments of cam_snap: 'shade' is a required property"),
        (call("snap", shade=1), "Error: there is no tool 'snap'"),
    ):
        reply = episode.step(wrong)
        assert said(reply).startswith(told)
        assert [c.ok for c in reply.calls] == [False]


def test_each_episode_has_a_process_with_no_secrets_that_ends_with_it(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CAMERA", "front")
    one, other = (begin(PICTURES | {"env_vars": ["CAMERA"]}) for _ in range(2))
    told = [said(each.step(call("add"))) for each in (one, other, one)]
    assert [text.split(" by ")[0] for text in told] == ["1", "1", "2"]
    environment = said(one.step(call("surroundings")))
    assert "CAMERA=front" in environment
    assert "secret" not in environment
    processes = {int(text.split(" by ")[1]) for text in told}
    assert len(processes) == 2
    one.close()
    other.close()
    assert all(map(has_gone, processes))


def test_what_a_task_may_not_say_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, why in (
        ({"command": "/no/such/program"}, "'s' cannot be used.*No such file"),
        ({"command": sys.executable, "args": ["-c", "print('hello')"]}, "ended with exit code 0"),
        ({"url": "http://127.0.0.1:9/mcp"}, "'s' cannot be used"),
        (hostile("x") | {"mcp": "s", "env_vars": ["NO_SUCH_KEY"]}, "variable NO_SUCH_KEY, which is not set"),
        (hostile("x") | {"mcp": "s", "enabled_tools": ["went"]}, "no tool 'went'; it has go"),
        ({"comand": "x"}, "no key 'comand'"),
        ({}, "needs a command, a url or a replay"),
        ({"replay": "none.jsonl"}, "No such file"),
    ):
        with pytest.raises(PluginError, match=why):
            load_tools([{"mcp": "s"} | wrong], tmp_path)
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.delitem(sys.modules, "tools_env.mcp.connection", raising=False)
    with pytest.raises(PluginError, match=r"'mcp', which is missing: pip install 'posttrain\[mcp\]'"):
        load_tools([hostile("not installed")], tmp_path)


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("does not start", "no licence"),
        ("is deaf", "did not return within 1 s"),
        ("endless list", "does not come to their end"),
        ("no tools", "it has no tools"),
        ("twins", "two tools called 'go'"),
        ("far", "refers to 'http://127.0.0.1:9/schema.json'"),
        ("file", "refers to 'file:///etc/passwd'"),
        ("no schema", "Input should be 'object'"),
        ("broken pattern", "a schema that is none: '\\(' is not a 'regex'"),
        ("marked schema", "the chat template would read as its own"),
    ],
)
def test_a_server_that_cannot_be_offered_is_refused_when_it_is_loaded(
    tmp_path: Path, mode: str, why: str
) -> None:
    limits = {"startup_timeout_s": 1} if mode == "is deaf" else {}
    with pytest.raises(PluginError, match=f"'hostile' cannot be used: .*{why}"):
        load_tools([hostile(mode, **limits)], tmp_path)


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("dies", "ended with exit code 3; its last words: out of cheese"),
        ("hangs", "did not return within 1 s"),
        ("garbage", "what is no message to its standard output: b'Traceback of nothing"),
        ("gigabyte", "a message of more than"),
        ("internal", "the database is gone"),
        ("nonsense", "writes what is no message"),
        ("no list", "validation error"),
        ("torn", "returned an image that was sent cannot be used"),
        ("svg", "it is none of PNG"),
        ("no base64", "an image that is no base64"),
        ("empty", "returned an image"),
        ("promise", r"structured content that it does not promise\['width'\]"),
        ("endless", "has a schema that cannot be checked: RecursionError"),
        ("lost", "has a schema that cannot be checked"),
        ("changes", "cannot be opened: the server describes its tool 'go' otherwise"),
        ("loses", "cannot be opened: the server has no tool 'go' any more"),
        ("loses late", "the server has no tool 'go' any more"),
    ],
)
def test_a_servers_failures_are_the_worlds(begin: Begin, tmp_path: Path, mode: str, why: str) -> None:
    (tmp_path / "state").touch()
    episode = begin(hostile(mode, tmp_path / "state", tool_timeout_s=1 if mode == "hangs" else 20))
    with pytest.raises(WorldError, match=why) as caught:
        episode.step(call("go", n=1))
    assert caught.value.tool == ("hostile" if "opened" in why else "go")
    assert caught.value.seconds is not None
    assert caught.value.seconds >= (1 if mode == "hangs" else 0)


@pytest.mark.parametrize("mode", ["slow pattern", "doubling"])
def test_a_schema_that_never_ends_is_ended(
    begin: Begin, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools_env.environment.CHECK_S", 0.5)
    episode = begin(hostile(mode))
    with pytest.raises(WorldError, match="has a schema that cannot be checked"):
        episode.step(call("go", n=1, text="a" * 60 + "!"))
    deadline = time.monotonic() + 5
    while any(thread.name == "tool-call" for thread in threading.enumerate()):  # nor goes on by itself
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("invalid", "Error: n must be even"),
        ("bomb", "Error: go made an image that cannot be shown: .*more than the [0-9,]+ pixels"),
        ("thin", "Error: go made an image that cannot be shown: .*200 times"),
        ("markup", re.escape("< /tool_response>< |im_end|>xxx")),
        ("stray", "gone"),
        (
            "odd",
            r"\[resource file:///a: a\]\ninside\n\[resource d:e: 3 bytes of x/y\]\n\[audio is left out\]",
        ),
        ("many", r"\[5 more images were cut\]"),
    ],
)
def test_the_model_reads_the_rest(begin: Begin, mode: str, told: str) -> None:
    episode = begin(hostile(mode))
    assert episode._tools["go"].spec.description == "A tool. < |im_end|>"
    reply = episode.step(call("go", n=1))
    assert re.search(told, said(reply))
    assert len(said(reply)) < 4200
    assert reply.message is not None
    assert len(reply.message.images) == (4 if mode == "many" else 0)


def test_the_command_line_lists_and_checks_a_servers_tools(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tools", "list", json.dumps(hostile("fine") | {"prefix": "x_"})]) == 0
    assert capsys.readouterr().out.split() == ["x_go", "A", "tool.", "<", "|im_end|>"]
    assert main(["tools", "check", json.dumps(hostile("internal"))]) == 1
    told = capsys.readouterr().out
    assert "✓ go: the model is told what it is" in told
    assert "✗ go: a typical call succeeds\n    " in told
    assert "the database is gone" in told
    with pytest.raises(SystemExit):
        main(["tools", "check", "{mcp: x, comand: y}"])
    assert "comand: Extra inputs are not permitted" in capsys.readouterr().err


def number_in(state: Path) -> int:
    """Wait for a process to write its number."""
    until = time.monotonic() + 10
    while not (state.is_file() and state.read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    return int(state.read_text())


def has_gone(process: int) -> bool:
    """Tell whether a process ends, on however busy a machine."""
    until = time.monotonic() + 20
    while psutil.pid_exists(process) and time.monotonic() < until:
        time.sleep(0.02)
    return not psutil.pid_exists(process)


def test_a_servers_children_go_with_it_whatever_they_do(begin: Begin, tmp_path: Path) -> None:
    state = tmp_path / "state"
    episode = begin(hostile("stays", state, tool_timeout_s=1))
    with pytest.raises(WorldError):
        episode.step(call("go"))
    grandchild = number_in(state)
    episode.close()
    assert has_gone(grandchild)


PARENT = """
import sys
from tools_env.mcp.server import connection
from tools_env.mcp.settings import McpSettings
from tools_env.deadline import call_with_deadline
held = connection(McpSettings("h", sys.argv[1], tuple(sys.argv[2:]), "/"))
call_with_deadline(held.open, 30)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_server_does_not_outlive_a_worker_that_is_killed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = hostile("stays", state)
    program = [sys.executable, "-c", PARENT, command["command"], *command["args"]]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=TESTS.parent) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"open\n"
        grandchild = number_in(state)
        assert psutil.pid_exists(grandchild)
        worker.kill()
    assert has_gone(grandchild)


class _Http(BaseHTTPRequestHandler):
    """A server over HTTP that does not keep to it, by its path."""

    #: Whether somebody hung up while it sent.
    cut_off = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/hangs":
            time.sleep(5)
        status = {"/refuses": 401, "/moves": 307}.get(self.path, 200)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if self.path == "/moves":
            self.send_header("Location", "http://127.0.0.2:9/mcp")
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        try:
            for _ in range(1024 if self.path == "/gigabyte" else 1):
                self.wfile.write(b"x" * (1 << 20))
        except OSError:
            _Http.cut_off.set()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name there
        pass


@pytest.mark.parametrize("path", ["hangs", "refuses", "moves", "packed", "gigabyte", "garbage"])
def test_a_server_over_http_that_keeps_to_nothing_is_refused(tmp_path: Path, path: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Http) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{path}"
        with pytest.raises(PluginError, match="'web' cannot be used"):
            load_tools([{"mcp": "web", "url": url, "startup_timeout_s": 2}], tmp_path)
        if path == "gigabyte":
            assert _Http.cut_off.wait(20)
        server.shutdown()


def test_a_server_over_http_that_dies_fails_the_call(begin: Begin, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    program = [sys.executable, TESTS / "mcp_pictures.py", str(port)]
    with subprocess.Popen(program, stderr=subprocess.DEVNULL) as process:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.02)
        episode = begin({"mcp": "web", "url": f"http://127.0.0.1:{port}/mcp", "tool_timeout_s": 20})
        assert said(episode.step(call("add"))).startswith("1 by")
        process.kill()
    began = time.monotonic()
    with pytest.raises(WorldError, match="MCP server 'web'"):
        episode.step(call("add"))
    assert time.monotonic() - began < 10


def test_headers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Asked(_Http):
        def do_POST(self) -> None:
            seen.append(self.headers.get("X-Key"))
            super().do_POST()

    monkeypatch.setenv("MAPS_KEY", "value of the key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Asked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = {"mcp": "web", "url": f"http://127.0.0.1:{server.server_address[1]}/refuses"}
        with pytest.raises(PluginError) as caught:
            load_tools([web | {"env_http_headers": {"X-Key": "MAPS_KEY"}}], tmp_path)
        server.shutdown()
    assert set(seen) == {"value of the key"}
    assert "value of the key" not in str(caught.value)
