"""Calls of MCP servers, recorded and replayed."""

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.failures import WorldError
from posttrain.plugins import PluginError
from posttrain.types import Sample, text_message
from tests.unit.tools_env.test_mcp import PICTURES, call, hostile
from tools_env import ToolEnvironment, load_tools
from tools_env.mcp.record import CallRecord, RecordError, first_key, next_key

TOOLS: list[Any] = [{"name": "go", "inputSchema": {"type": "object"}}]


def play(server: dict[str, Any], folder: Path, turns: list[str], sample: str = "one") -> list[Any]:
    """What the model sees of some turns, and the calls."""
    environment = ToolEnvironment(load_tools([server], folder), 20, folder / "images")
    try:
        environment.start(Sample(sample, (text_message("user", "Go."),)))
        return [environment.step(turn) for turn in turns]
    finally:
        environment.close()


def test_a_run_repeats_without_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = {"mcp": "pictures", "prefix": "cam_", "replay": "calls/pictures.jsonl"}
    turns = [
        call("cam_snap", shade=9) + call("cam_add", number=2),
        call("cam_refuse"),
        call("cam_snap", shade=999),
        call("cam_add"),
        call("cam_snap"),
    ]
    server = PICTURES | {"prefix": "cam_"}
    played = play(server | {"record": "calls/pictures.jsonl"}, tmp_path, turns)
    assert [each.ok for reply in played for each in reply.calls] == [True, True, False, False, True, False]
    # Neither the SDK nor the server is there.
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.delitem(sys.modules, "tools_env.mcp.connection")
    replayed = play(replay, tmp_path, turns)
    assert replayed == played  # the number of the server's process is in what `add` says
    for turn, sample in (
        (call("cam_add", number=3), "one"),
        (turns[0], "two"),
        (call("cam_add"), "one"),  # was made, but not first
    ):
        with pytest.raises(WorldError, match=r"pictures.jsonl has no such call of '\w+': .*record again"):
            play(
                {"mcp": "pictures", "prefix": "cam_", "replay": "calls/pictures.jsonl"},
                tmp_path,
                [turn],
                sample,
            )


def test_while_it_records_the_first_result_holds(tmp_path: Path) -> None:
    server = PICTURES | {"record": "calls.jsonl"}
    first, again = (play(server, tmp_path, [call("add")]) for _ in range(2))
    assert first == again  # although another process has answered
    assert play(server, tmp_path, [call("add")], "two") != first
    assert [json.loads(line).get("sample") for line in (tmp_path / "calls.jsonl").open()] == [
        None,
        "one",
        "two",
    ]


def test_what_failed_is_not_recorded_and_refused_arguments_are(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="out of cheese"):
        play(hostile("dies") | {"record": "dies.jsonl"}, tmp_path, [call("go")])
    assert len((tmp_path / "dies.jsonl").read_text().splitlines()) == 1
    played = play(hostile("invalid") | {"record": "invalid.jsonl"}, tmp_path, [call("go")])
    assert played == play({"mcp": "hostile", "replay": "invalid.jsonl"}, tmp_path, [call("go")])
    assert played[0].calls[0].error == "Error: n must be even"


def test_a_record_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    for text, why in (
        ("", "is empty"),
        ("[]\n", "calls.jsonl:1 is no line of a record"),
        ('{"form": 2, "server": "s", "tools": []}\n', "calls.jsonl:1 is no line"),
        ('{"form": 1, "server": "s", "tools": []}\nnonsense\n', "calls.jsonl:2 is no line"),
    ):
        path.write_text(text)
        with pytest.raises(PluginError, match=why):
            load_tools([{"mcp": "s", "replay": "calls.jsonl"}], tmp_path)
    path.unlink()
    CallRecord(path, "s", TOOLS)
    with pytest.raises(RecordError, match="recorded with other tools of s"):
        CallRecord(path, "s", [])


def line(number: int, said: str) -> dict[str, Any]:
    key = next_key(first_key("one"), "go", {"n": number})
    return {"key": key, "sample": "one", "tool": "go", "arguments": {"n": number}, "result": {"said": said}}


def write(path: Path, name: str, answers: Any) -> None:
    record = CallRecord(path, "s", TOOLS)
    answers.put([record.keep(line(number, name))["result"]["said"] for number in range(200)])  # type: ignore[index,call-overload]


def test_several_processes_record_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    writers = [context.Process(target=write, args=(path, name, answers)) for name in "ab"]
    for each in writers:
        each.start()
    one, other = answers.get(timeout=60), answers.get(timeout=60)
    for each in writers:
        each.join()
    assert one == other  # whoever came first, both were given it
    assert len(path.read_text().splitlines()) == 201
    record = CallRecord(path, "s")
    for number, said in enumerate(one):
        found = record.find(line(number, "")["key"])
        assert found is not None
        assert found["result"] == {"said": said}


def test_a_line_that_a_crash_cut_off_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    CallRecord(path, "s", TOOLS).keep(line(0, "whole"))
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(line(1, "cut")).encode()[:-5])
    assert CallRecord(path, "s").find(line(1, "")["key"]) is None
    CallRecord(path, "s", TOOLS).keep(line(1, "again"))
    assert path.read_bytes() == whole + json.dumps(line(1, "again"), ensure_ascii=False).encode() + b"\n"
