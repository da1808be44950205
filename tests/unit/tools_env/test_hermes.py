import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools_env.hermes import MAX_CALL_LENGTH, MAX_CALLS, ParsedCall, parse_calls


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


GOOD = call('{"name": "zoom", "arguments": {"x": 1}}')
PARSED = ParsedCall("zoom", {"x": 1})


def test_calls_are_read_in_order():
    text = f"Let me look. {GOOD}\nand {call(json.dumps({'name': 'b', 'arguments': {}}))} done"
    assert parse_calls(text) == [PARSED, ParsedCall("b", {})]


@pytest.mark.parametrize("text", ["", "K", "</tool_call>", "<tool_call", '{"name": "zoom", "arguments": {}}'])
def test_no_call(text: str):
    assert parse_calls(text) == []


def test_thinking_does_not_call():
    assert parse_calls(f"<think>{GOOD}</think>K") == []
    assert parse_calls(f"{GOOD}</think>K") == []
    assert parse_calls(f"<think>{GOOD}") == []
    assert parse_calls(f"<think>hm</think>{GOOD}") == [PARSED]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>", "no closing"),
        ('<tool_call>{"name": "zoom", "arguments": {}}', "no closing"),
        ("<tool_call>" * 1000, "no closing"),
        (call(""), "the call is empty"),
        (call("nothing"), "not valid JSON: Expecting value"),
        (call("{'name': 'zoom'}"), "not valid JSON"),
        (call('{"name": "zoom", "arguments": {"x": NaN}}'), "NaN"),
        (call('{"name": "zoom", "name": "b", "arguments": {}}'), "twice"),
        (call('{"name": "zoom", "arguments": {"x": 1e999}}'), "too large"),
        (call('{"name": "zoom", "arguments": {"x": "\\ud800"}}'), "surrogate"),
        (call("[" * 10_000), "nested deeper"),
        (call("x" * 1_000_000), "longer than"),
        (call("[]"), "must be an object"),
        (call("null"), "must be an object"),
        (call("{}"), '"name"'),
        (call('{"name": ["zoom"], "arguments": {}}'), '"name"'),
        (call('{"name": "zoom"}'), '"arguments"'),
        (call('{"name": "zoom", "arguments": "{}"}'), '"arguments"'),
        (call('{"name": "zoom", "arguments": [1]}'), '"arguments"'),
        ("<tool_call>" + GOOD, "not valid JSON"),
        (call('{"name": "zoom", "arguments": {"x": "</tool_call>"}}'), "not valid JSON"),
    ],
)
def test_a_bad_call_gives_a_reason(text: str, reason: str):
    (parsed,) = parse_calls(text)
    assert reason in parsed.error
    assert len(parsed.error) < 300


def test_a_bad_call_does_not_spoil_the_next():
    assert [bool(parsed.error) for parsed in parse_calls(call("oops") + GOOD)] == [True, False]


def test_floods_are_cut():
    parsed = parse_calls(GOOD * 100_000)
    assert parsed[:MAX_CALLS] == [PARSED] * MAX_CALLS
    assert len(parsed) == MAX_CALLS + 1
    assert "at most 8 calls" in parsed[-1].error


def test_a_megabyte_takes_no_time():
    body = '{"name": "zoom", "arguments": ' + '{"a":' * 3000
    assert len(body) < MAX_CALL_LENGTH
    started = time.process_time()
    for text in ("<tool_call>" * 90_000, call(body) * 50, "<" * 1_000_000, call("{" * 1_000_000)):
        parse_calls(text)
    assert time.process_time() - started < 2


MARKUP = ["<tool_call>", "</tool_call>", "<think>", "</think>", GOOD, '{"name":', '"arguments": {']


@settings(deadline=None)
@given(st.lists(st.sampled_from(MARKUP) | st.text(), max_size=12))
def test_anything_is_calls_or_reasons(pieces: list[str]):
    for parsed in parse_calls("".join(pieces)):
        assert parsed.error or (parsed.name and isinstance(parsed.arguments, dict))
