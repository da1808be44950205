"""What other formats say of thinking, calls and tools reaches the model as transformers would write it."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.data.formats import canonical_row, sample_of
from posttrain.rendering.chat_templates import chat_template
from posttrain.types import Sample

PUBLISHED = {
    name: (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    for name in ("qwen2_5", "qwen3", "qwen3_vl")
}
#: What surrounds a text: line breaks and other white space, which the templates treat differently.
AROUND = st.sampled_from(["", "\n", "\n\n", "\n\n\n", " ", "\t\n", "\n "])
WORDS = st.sampled_from(["Two.", "310 g", "é <b> & 'q' \"x\"", "数え", "a\n\nb", "{x}"])
TEXTS = st.builds(lambda before, text, after: before + text + after, AROUND, WORDS, AROUND)
#: Numbers whose written form is easily lost, and nested values.
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, -1, 1.0, 1e-3, 1e30, 10**25, -0.0, 0.1]),
        st.sampled_from(["", "é", "\n", "</b>", "1.0"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("zyxab"), inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["b", "a", "名", "z"]), VALUES, max_size=3)


def calls_of(arguments: Any) -> Any:
    function = st.fixed_dictionaries({"name": st.sampled_from(["weigh", "add"]), "arguments": arguments})
    wrapped = st.builds(lambda each: {"id": "c1", "type": "function", "function": each}, function)
    return st.lists(wrapped, min_size=1, max_size=2)


def steps(contents: Any, arguments: Any, **more: Any) -> Any:
    """Turns after a question: calls with their results, then an answer."""
    called = st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": contents, "tool_calls": calls_of(arguments), **more}
    )
    result = st.fixed_dictionaries({"role": st.just("tool"), "content": TEXTS})
    answer = st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS, **more})
    pairs = st.lists(st.tuples(called, result).map(list), max_size=2)
    return st.builds(lambda found, last: [*itertools.chain(*found), last], pairs, answer)


SCHEMAS = st.builds(
    lambda keys, parameters: dict([("name", "weigh"), *keys, ("parameters", parameters)]),
    st.permutations(
        [("strict", True), ("return", {"type": "number"}), ("description", "wägt"), ("x-limit", 1.0)]
    ).flatmap(lambda keys: st.integers(0, len(keys)).map(lambda count: keys[:count])),
    st.none()
    | st.builds(lambda value: {"type": "object", "properties": {"item": {"default": value}}}, VALUES),
)
TOOLS = st.lists(
    SCHEMAS.flatmap(
        lambda each: st.sampled_from(
            [
                {"type": "function", "function": each},
                {"function": each, "type": "function"},
                {"type": "function", "strict": True, "function": each},
            ]
        )
    ),
    max_size=2,
)
QUESTION = [{"role": "system", "content": "Weigh."}, {"role": "user", "content": "Heavy?"}]


def read(row: Any, form: str = "openai") -> Sample:
    whole = canonical_row(json.loads(json.dumps(row)), form, {}, {})
    return sample_of(json.loads(json.dumps(whole)), Path(), "row")


def written(sample: Sample, template: str) -> str:
    plain = [{"role": each.role, "content": each.text} for each in sample.messages]
    return rendered(plain, chat_template(template), [tool.as_openai() for tool in sample.tools])  # type: ignore


def rendered(messages: list[Any], template: str, tools: list[Any]) -> str:
    [text], _ = render_jinja_template([messages], chat_template=template, tools=tools or None)
    return text


def as_text(value: Any) -> Any:
    return st.one_of(value, value.map(json.dumps), value.map(lambda each: json.dumps(each, indent=1)))


@given(steps(st.none() | st.just("") | TEXTS | AROUND, as_text(ARGUMENTS), reasoning_content=TEXTS), TOOLS)
def test_thinking_text_and_calls_are_joined_as_qwen3_joins_them(turns: list[Any], tools: list[Any]) -> None:
    """Equal after the last question; before it, that template drops thinking, and ours keeps it."""
    messages = [*QUESTION, *turns]
    assert written(read({"messages": messages, "tools": tools}), "qwen3_vl") == rendered(
        messages, PUBLISHED["qwen3"], tools
    )


BLOCKS = st.lists(
    st.builds(lambda text: {"type": "text", "text": text}, TEXTS | AROUND), min_size=1, max_size=3
)


@given(steps(TEXTS | st.just("") | BLOCKS, as_text(ARGUMENTS)), TOOLS)
def test_calls_follow_a_text_as_qwen3_vl_writes_them(turns: list[Any], tools: list[Any]) -> None:
    messages = [*QUESTION, *turns]
    assert written(read({"messages": messages, "tools": tools}), "qwen3_vl") == rendered(
        messages, PUBLISHED["qwen3_vl"], tools
    )


@given(steps(TEXTS | st.just(""), ARGUMENTS), TOOLS)
def test_calls_follow_a_text_as_qwen2_5_writes_them(turns: list[Any], tools: list[Any]) -> None:
    """Qwen2.5's text template writes arguments that are a text in quotes once more, so they are objects."""
    messages = [*QUESTION, *turns]
    assert written(read({"messages": messages, "tools": tools}), "qwen2_vl") == rendered(
        messages, PUBLISHED["qwen2_5"], tools
    )


@pytest.mark.parametrize(
    "thought", ["<think>\nhm\n</think>", "<think>\nhm\n</think>\n", "<think>\nhm\n</think>\n\n\n"]
)
def test_a_call_of_its_own_turn_follows_thinking_after_one_blank_line(thought: str) -> None:
    call = {"name": "weigh", "arguments": {"item": "mug"}}
    row = {
        "messages": [
            {"role": "user", "content": "Heavy?"},
            {"role": "assistant", "content": thought},
            {"role": "tool_call", "content": json.dumps(call)},
        ]
    }
    expected = [*row["messages"][:1], {"role": "assistant", "content": thought, "tool_calls": [call]}]
    assert written(read(row, "ms_swift"), "qwen3_vl") == rendered(expected, PUBLISHED["qwen3"], [])


@given(TOOLS)
def test_schemas_survive_being_written_and_read_again(tools: list[Any]) -> None:
    once = read({"messages": QUESTION, "tools": tools})
    again = sample_of(
        {"messages": QUESTION, "tools": [tool.as_openai() for tool in once.tools]},  # type: ignore
        Path(),
        "row",
    )
    assert json.dumps([tool.as_openai() for tool in again.tools]) == json.dumps(tools)  # type: ignore


def test_a_bare_function_is_announced_as_one_and_keeps_its_keys() -> None:
    schema = {"name": "weigh", "strict": True, "parameters": {"type": "object"}}
    [tool] = read({"messages": QUESTION, "tools": [schema]}, "canonical").tools
    assert json.dumps(tool.as_openai()) == json.dumps({"type": "function", "function": schema})  # type: ignore
