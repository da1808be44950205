"""Sessions: opened when first called, closed whatever happens; and what is whose fault."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.plugins import PluginError
from posttrain.types import EnvironmentReply, Sample, text_message
from tools_env import (
    Episode,
    Session,
    ToolEnvironment,
    ToolError,
    ToolResult,
    WorldError,
    deadline,
    load_tools,
    sessions,
    tool,
)
from tools_env import environment as tool_environment
from tools_env.sessions import SessionClass
from tools_env.shown import MAX_TEXT

SAMPLE = Sample("one", (text_message("user", "Go."),), columns={"start": 3})


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class Tally(Session):
    """Counts, and tells `log` what becomes of it."""

    log: list[str]

    def __init__(self, step: int = 1) -> None:
        self.step = step

    def open(self, episode: Episode) -> None:
        self.log.append("open")
        self.count = episode.sample.columns["start"]

    @tool
    def add(self) -> str:
        """Add."""
        self.count += self.step
        return str(self.count)

    @tool
    async def add_later(self, seconds: float) -> str:
        """Add after a while."""
        await asyncio.sleep(seconds)
        return self.add()  # pyright: ignore[reportReturnType]  # a tool is a method of its session

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture
def tally() -> type[Tally]:
    return type("Tally", (Tally,), {"log": []})


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., ToolEnvironment]:
    def start(made_of: type[Session], max_turns: int = 9, **params: Any) -> ToolEnvironment:
        environment = ToolEnvironment(SessionClass(made_of, params).tools, max_turns, tmp_path)
        environment.start(SAMPLE)
        return environment

    return start


def said(reply: EnvironmentReply) -> str:
    return "".join(message.text for message in reply.messages)


def test_a_session_keeps_its_state_and_each_episode_has_its_own(begin, tally: type[Tally]) -> None:
    one, other = begin(tally, step=2), begin(tally)
    assert [said(one.step(call("add"))) for _ in range(3)] == ["5", "7", "9"]
    assert said(other.step(call("add") + call("add_later", seconds=0.01))) == "45"
    one.close()
    other.close()
    assert tally.log == ["open", "open", "close", "close"]


def test_nothing_is_opened_for_an_episode_without_calls(begin, tally: type[Tally]) -> None:
    environment = begin(tally)
    assert environment.step("3").done
    environment.close()
    assert tally.log == []


def test_a_class_of_sessions_is_named_like_any_tool(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tools_env import Session, tool\n\n\nclass Notes(Session):\n"
        "    def __init__(self, limit=3):\n        self.limit = limit\n\n"
        '    @tool\n    def note(self, text: str) -> str:\n        """Note a text."""\n        return text\n'
        "\n\nclass Bare(Session):\n    pass\n"
    )
    (loaded,) = load_tools([{"name": "mine.py:Notes", "params": {"limit": 2}}], tmp_path)
    assert loaded.spec.parameters["required"] == ["text"]
    with pytest.raises(PluginError, match="Bare has no tools"):
        load_tools(["mine.py:Bare"], tmp_path)
    with pytest.raises(PluginError, match="limits"):
        load_tools([{"name": "mine.py:Notes", "params": {"limits": 2}}], tmp_path)


@pytest.mark.parametrize("how", ["raises", "hangs", "hangs in the loop"])
def test_a_session_that_does_not_open_is_the_worlds_failure_and_is_closed(
    begin, tally: type[Tally], how: str
) -> None:
    release = threading.Event()

    class Broken(tally):
        open_deadline_s = 0.1

        def open(self, episode: Episode) -> Any:
            self.log.append("open")
            if how == "raises":
                raise KeyError("no such image of a container")
            if how == "hangs":
                release.wait(10)
                return None
            return asyncio.sleep(10)

    environment = begin(Broken)
    with pytest.raises(WorldError, match=r"cannot be opened: (KeyError|did not return)") as caught:
        environment.step(call("add"))
    assert caught.value.tool == "Broken"
    environment.close()
    assert tally.log == ["open", "close"]
    release.set()
    wanted = 2 if how == "hangs" else 1  # once more, for what was opened too late
    waited = time.monotonic() + 5
    while tally.log.count("close") < wanted and time.monotonic() < waited:
        time.sleep(0.01)
    assert tally.log.count("close") == wanted


def test_a_session_that_does_not_close_keeps_nobody_from_the_others(
    tmp_path: Path, tally: type[Tally], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "CLOSE_S", 0.1)
    release = threading.Event()

    class Stuck(Session):
        @tool
        def stick(self) -> str:
            """Stick."""
            return "stuck"

        def close(self) -> None:
            release.wait(10)

    tools = [*SessionClass(tally, {}).tools, *SessionClass(Stuck, {}).tools]
    environment = ToolEnvironment(tools, 3, tmp_path)
    environment.start(SAMPLE)
    environment.step(call("add") + call("stick"))
    begun = time.monotonic()
    environment.close()
    assert time.monotonic() - begun < 5
    assert tally.log == ["open", "close"]
    release.set()


def test_a_coroutine_is_cancelled_at_its_deadline_and_the_loop_goes_on(
    begin, tally: type[Tally], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "_left_behind", set())
    monkeypatch.setattr(tally, "deadline_s", 0.1)
    environment = begin(tally)
    with pytest.raises(WorldError, match=r"did not return within 0\.1 s"):
        environment.step(call("add_later", seconds=30))
    loop = deadline.tool_loop()
    assert said(environment.step(call("add_later", seconds=0))) == "4"
    assert deadline.tool_loop() is loop
    assert not any(thread.is_alive() for thread in deadline._left_behind)
    environment.close()


def test_a_coroutine_that_blocks_its_loop_blocks_nobody_else(
    begin, tally: type[Tally], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "CANCEL_S", 0.1)
    release = threading.Event()

    class Blocking(Session):
        deadline_s = 0.1

        @tool
        async def block(self) -> str:
            """Block."""
            release.wait(10)
            return "late"

    with pytest.raises(WorldError, match="did not return"):
        begin(Blocking).step(call("block"))
    assert said(begin(tally).step(call("add_later", seconds=0))) == "4"
    release.set()


class Client(Exception):
    """What a client library raises, which is of no class that anybody here knows."""


def refuse_connection() -> str:
    try:
        raise ConnectionRefusedError(111, "Connection refused")
    except OSError as error:
        raise Client("no answer") from error


def raise_it(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


@pytest.mark.parametrize(
    ("body", "fault", "told"),
    [
        (raise_it(ToolError("give a city")), "model", "give a city"),
        (raise_it(IndexError("7")), "model", "failed (IndexError)"),
        (raise_it(WorldError("the server is down")), "world", "the server is down"),
        (raise_it(ConnectionResetError("reset")), "world", "ConnectionResetError: reset"),
        (raise_it(TimeoutError()), "world", "TimeoutError"),
        (raise_it(MemoryError()), "world", "MemoryError"),
        (refuse_connection, "world", "Client: no answer"),
        (lambda: None, "world", "returned None"),
        (lambda: {"text": "a lie"}, "world", "no text, image or ToolResult"),
        (lambda: ToolResult(b"bytes"), "world", "no text"),  # pyright: ignore[reportArgumentType]
        (lambda: ToolResult(images=["a.png"]), "world", "'a.png' as an image"),  # pyright: ignore
        (lambda: ToolResult(images=iter(())), "world", "no text"),  # pyright: ignore[reportArgumentType]
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_the_type_of_an_exception_says_whose_fault_it_is(
    begin, body: Callable[[], Any], fault: str, told: str, later: bool
) -> None:
    class Faulty(Session):
        @tool
        def at_once(self) -> str:
            """Act."""
            return body()

        @tool
        async def later(self) -> str:
            """Act."""
            return body()

    environment, name = begin(Faulty), "later" if later else "at_once"
    if fault == "model":
        assert told in said(environment.step(call(name)))
        return
    with pytest.raises(WorldError) as caught:
        environment.step(call(name))
    assert told in str(caught.value)
    assert caught.value.tool == name


def test_a_gigabyte_of_text_is_cut(begin) -> None:
    class Flood(Session):
        @tool
        def flood(self) -> str:
            """Flood."""
            return "x" * 10**9

    text = said(begin(Flood).step(call("flood")))
    assert len(text) < MAX_TEXT + 100
    assert text.endswith("999,996,000 more characters were cut]")


def test_a_thousand_episodes_leave_nothing_behind(
    begin, tally: type[Tally], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    for number in range(1000):
        environment = begin(tally)
        environment.step(call("add") if number % 2 else call("add_later", seconds=0))
        environment.close()
    assert tally.log.count("open") == tally.log.count("close") == 1000
    assert threading.active_count() <= before + 1  # the loop


def test_a_tool_says_how_long_it_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_environment, "CALL_S", 0.05)

    @tool(deadline_s=5)
    def patient() -> str:
        """Wait."""
        time.sleep(0.2)
        return "done"

    environment = ToolEnvironment([patient], 2, tmp_path)
    environment.start(SAMPLE)
    assert said(environment.step(call("patient"))) == "done"
