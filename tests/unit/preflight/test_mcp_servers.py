"""MCP servers of tasks are started and asked before a run is."""

import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.mcp import McpServerConfig

HOSTILE = Path(__file__).parents[2] / "mcp_hostile.py"


def task(*tools: Any) -> dict[str, Any]:
    task = {"data": "prompts", "tools": list(tools), "max_turns": 3, "rewards": ["answer_accuracy"]}
    return {"stage": "rl", "max_steps": 1, "tasks": [task]}


def server(mode: str, **more: Any) -> dict[str, Any]:
    args = ["-S", "-I", str(HOSTILE), mode]
    return {"mcp": mode.replace(" ", "-"), "command": sys.executable, "args": args} | more


def test_a_server_that_serves_is_no_problem(look) -> None:
    assert not look(task("image_zoom_in", server("fine"), server("well", prefix="w_"))).problems


@pytest.mark.parametrize(
    ("tools", "key", "reason"),
    [
        ([server("does not start")], "tools[0]", "no licence"),
        ([server("fine"), server("well")], "tools[1]", "two tools call themselves 'go'"),
        ([{"mcp": "s", "replay": "none.jsonl"}], "tools[0]", "No such file"),
        ([{"mcp": "s"}], "tools[0].command", "nothing says how to reach the server"),
        ([{"mcp": "s", "command": "a", "url": "http://b"}], "tools[0].url", "has a command as well"),
        (
            [{"mcp": "s", "url": "http://b", "args": ["c"]}],
            "tools[0].args",
            "of a command",
        ),
        ([server("x", env_http_headers={"A": "B"})], "tools[0].env_http_headers", "there is none"),
        ([server("x", record="a", replay="b")], "tools[0].record", "makes no new calls"),
        ([server("x", env_vars=["sk-123"])], "tools[0].env_vars[0]", "the name of an environment variable"),
        ([server("x", comand="b")], "tools[0].comand", "unknown key"),
        ([{"mcp": "s", "url": "http://me:secret@b"}], "tools[0].url", "without user name"),
        ([server("x"), server("x")], "tools", "'mcp: x' is listed more than once"),
    ],
)
def test_one_that_does_not_is_named_by_its_key(look, tools: list[Any], key: str, reason: str) -> None:
    (problem,) = look(task(*tools)).problems
    assert problem.key == f"stages[0].tasks[0].{key}"
    assert reason in problem.reason


def test_the_files_of_its_command_line_are_those_that_other_nodes_need(folder: Path) -> None:
    program = folder / "serve.py"
    program.touch()
    args = ["-u", "serve.py", "none.py", "x" * 5000, "\0", "datasets_cfg"]
    made = McpServerConfig.model_validate({"mcp": "s", "command": "python", "args": args})
    assert made.files(str(folder)) == [program]
    assert McpServerConfig.model_validate({"mcp": "s", "url": "http://b"}).files(str(folder)) == []


def test_without_its_variables_nothing_is_started(look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHARTS_KEY", raising=False)
    found = look(task(server("does not start", env_vars=["CHARTS_KEY"])))
    assert not found.problems
    [missing] = found.missing_here
    assert missing.reason == (
        "mcp: does-not-start was not started here: the environment variable CHARTS_KEY is not set"
    )
    assert missing.remedy == "set it: export CHARTS_KEY=…"
