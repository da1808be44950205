"""What the formats of other tools share: turns, thinking, tool calls, tool schemas and system texts.

Everything here maps parsed JSON to the canonical form's JSON; paths, roles and counts are checked when the
canonical row is read.
"""

import json
from collections.abc import Mapping

from posttrain.data.formats.blocks import Content, as_list, blocks_of, read_content, read_json
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.keys import (
    ASSISTANT_KEYS,
    CALL_KEYS,
    FUNCTION_KEYS,
    LEARNING_KEYS,
    THINKING_KEYS,
    TURN_KEYS,
    is_empty,
    refuse_unread,
)
from posttrain.data.formats.placeholders import count_places, json_messages
from posttrain.data.formats.row import Row
from posttrain.messages import THINK_END, THINK_START

#: Roles as the formats name them. A `call` is an assistant's turn whose content is the call's JSON.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "function": "tool",
    "tool_call": "call",
    "function_call": "call",
}


def read_turns(
    value: object,
    *,
    role_key: str = "role",
    content_key: str = "content",
    roles: Mapping[str, str] = ROLES,
    where: str = "messages",
) -> list[Row]:
    """Rewrite messages of another tool in the canonical form.

    A call that follows an assistant's text becomes part of that turn, because the model writes both in one.

    Args:
        value: A list of messages, or such a list as JSON in a text.
        role_key: Where a message says who speaks.
        content_key: Where it says what.
        roles: What each name of a role means.
        where: The column that they are in, for errors.

    Raises:
        DataError: If it is no list of messages, or a role, a block or a key is unknown.
    """
    value = (json_messages(value) or value) if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"the messages must be a list of objects, got {str(value)[:60]!r}")
    read = TURN_KEYS | {role_key, content_key}
    of_role = {"call": read | {"arguments"}}
    turns: list[Row] = []
    for item in value:
        name = item.get(role_key)
        role = roles.get(name) if isinstance(name, str) else None
        if role is None:
            raise DataError(_unknown_role(item, role_key, content_key, roles))
        refuse_unread(item, of_role.get(role, read), f"the message of {name!r}", where)
        if role == "tool" and item.get(content_key) is None:
            raise DataError(
                f'the message of {name!r} has no {content_key}; write "" where a tool said nothing'
            )
        if role == "call":
            content, speaker = _call(item, content_key), "assistant"
        else:
            content, speaker = read_content(item.get(content_key), f"{where}.{content_key}"), role
        if not ASSISTANT_KEYS.isdisjoint(item):
            is_assistant = speaker == "assistant"
            content = _assistant(item, content) if is_assistant else _no_assistant(item, content, name)
        turn: Row = {"role": speaker, "content": content}
        if not LEARNING_KEYS.isdisjoint(item):
            turn |= _learning(item, speaker)
        if role == "call" and turns and turns[-1]["role"] == "assistant":
            _join_call(turns[-1], turn)
        else:
            turns.append(turn)
    return turns


def read_tools(value: object) -> list[object]:
    """Read tool schemas, also where they are JSON in a text, as `{"type": "function", "function": {…}}`.

    Raises:
        DataError: If it is no list of tools.
    """
    if value is None or value == "":
        return []
    tools = read_json(value, "the tools") if isinstance(value, str) else value
    if not isinstance(tools, list):
        raise DataError(f"the tools must be a list, got {type(tools).__name__}")
    return [
        _tool(read_json(tool, "a tool") if isinstance(tool, str) and "{" in tool else tool) for tool in tools
    ]


def _tool(tool: object) -> object:
    """Return a tool's schema as an entry of `tools`; `parameters` may be JSON in a text."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return tool
    if isinstance(function.get("parameters"), str):
        parameters = read_json(function["parameters"], "a tool's parameters")
        function = function | {"parameters": parameters}
    whole = tool if isinstance(tool, dict) and "function" in tool else {"type": "function"}
    return whole | {"function": function}


def tool_call_text(call: object) -> str:
    """Write a call as the families' chat templates do; a list of calls as one after another.

    Raises:
        DataError: If it names no function, or has a key that is not read.
    """
    if isinstance(call, list):
        return "\n".join(tool_call_text(item) for item in call)
    function = call.get("function", call) if isinstance(call, dict) else {}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"the tool call {str(call)[:80]!r} has no name")
    if isinstance(call, dict) and "function" in call:
        refuse_unread(call, CALL_KEYS, "a tool call", "messages.tool_calls")
    refuse_unread(function, FUNCTION_KEYS, "a tool call", "messages.tool_calls.function")
    arguments = function.get("arguments") or function.get("parameters") or {}
    if isinstance(arguments, str):
        read_json(arguments, "a call's arguments")
        written = arguments  # as the templates write a text: 1e-3 stays 1e-3
    else:
        written = json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {written}}}\n</tool_call>'


def reply(value: object, where: str = "reply") -> list[Row]:
    """Read a preferred or rejected reply: a text, a message, or messages, which may be JSON in a text."""
    if isinstance(value, str) and json_messages(value) is None:
        return [{"role": "assistant", "content": value}]
    return read_turns(as_list(value), where=where)


def with_system(text: object, turns: object) -> object:
    """Put a system text before a dialogue, where there is one and the dialogue has none itself.

    Raises:
        DataError: If it is no text, or the dialogue begins with another one.
    """
    if is_empty(text) or not isinstance(turns, list):
        return turns
    if not isinstance(text, str):
        raise DataError(f'"system" must be a text, got {type(text).__name__}')
    if not turns or turns[0]["role"] != "system":
        return [{"role": "system", "content": text}, *turns]
    if turns[0]["content"] != text:
        raise DataError(
            'the row has a column "system" and the dialogue begins with another system message; to leave the'
            " column out, write drop_columns: [system] in the dataset's YAML"
        )
    return turns


def show_first(turns: list[Row], kind: str, count: int) -> list[Row]:
    """Put places for `count` images, or videos, before the first user text, if there is no place for any."""
    first = next((index for index, turn in enumerate(turns) if turn["role"] == "user"), None)
    blocks = [block for turn in turns for block in blocks_of(turn["content"]) if isinstance(block, dict)]
    has_some = any(block.get("type") == kind for block in blocks)
    if not count or first is None or has_some or count_places(turns, kind):
        return turns
    places: list[Row] = [{"type": kind} for _ in range(count)]
    shown = turns[first] | {"content": places + blocks_of(turns[first]["content"])}
    return [*turns[:first], shown, *turns[first + 1 :]]


def _learning(item: Row, role: str) -> dict[str, bool]:
    """Read whether a turn is learned, by whichever keys say so."""
    marks = {key: item[key] for key in sorted(LEARNING_KEYS) if not is_empty(item.get(key))}
    for key, mark in marks.items():
        if not isinstance(mark, int | float) or mark not in (0, 1):
            raise DataError(
                f"a message's {key} (loss) is {str(mark)[:40]!r}; a turn is learned or not: true or false"
            )
    values = {bool(mark) for mark in marks.values()}
    if len(values) > 1:
        raise DataError(f"a message's {' and '.join(marks)} say different things of whether it is learned")
    if role != "assistant" and True in values:
        raise DataError(f"the {role} message is to be learned ({', '.join(marks)}); only assistant turns are")
    return {"train": values.pop()} if values and role == "assistant" else {}


def _assistant(item: Row, content: Content) -> Content:
    """Put an assistant's thinking before its content and its calls after, as Qwen3's templates write them."""
    refusal = item.get("refusal")
    if isinstance(refusal, str) and refusal and content in ("", [], refusal):
        content = refusal
    elif not is_empty(refusal):
        raise DataError("an assistant message has content and a refusal; keep what it says in content")
    thinking = _thinking(item)
    if thinking and any(THINK_END in str(block.get("text")) for block in blocks_of(content)):
        raise DataError("an assistant message has its thinking twice: in content, and on its own")
    calls = read_json(item.get("tool_calls") or None, "tool_calls")
    legacy = item.get("function_call")
    if not is_empty(calls) and not is_empty(legacy):
        raise DataError("an assistant message has tool_calls and function_call; keep one of the two")
    called = legacy if is_empty(calls) else calls
    if not thinking:
        return content if is_empty(called) else _joined(content, tool_call_text(called))
    spoken, thought = blocks_of(content), thinking.strip("\n")
    turn = [_text(f"{THINK_START}\n{thought}\n{THINK_END}\n\n"), *_without_leading_breaks(spoken)]
    return turn if is_empty(called) else [*turn, _text(("\n" if spoken else "") + tool_call_text(called))]


def _thinking(item: Row) -> str:
    """Return what an assistant's message tells of its thinking apart from its content."""
    told = [(key, item[key]) for key in THINKING_KEYS if not is_empty(item.get(key))]
    for key, thought in told:
        if not isinstance(thought, str):
            raise DataError(f"a message's {key} must be a text, got {type(thought).__name__}")
    thoughts = [str(thought) for _, thought in told]
    if len(set(thoughts)) > 1:
        raise DataError(f"a message's {' and '.join(key for key, _ in told)} differ; keep one of them")
    return thoughts[0] if thoughts else ""


def _no_assistant(item: Row, content: Content, name: object) -> Content:
    """Return the content of a message of somebody else, who neither thinks nor calls."""
    for key in sorted(ASSISTANT_KEYS):
        if not is_empty(item.get(key)):
            raise DataError(f"the message of {name!r} has a key {key!r}, which only an assistant's has")
    return content


def _call(item: Row, content_key: str) -> Content:
    """Read a message that is a call: its JSON as a text or an object, perhaps after its thinking."""
    call, thinking = item.get(content_key), ""
    if is_empty(call) and "arguments" in item:
        call = {"name": item.get("name"), "arguments": item["arguments"]}
    if isinstance(call, str):
        before, end, after = call.rpartition(THINK_END)
        if end and before.lstrip().startswith(THINK_START):
            call = after.lstrip()
            thinking = before + end + after[: len(after) - len(call)]
        call = read_json(call, "a call")
    if not isinstance(call, dict | list) or not call:
        raise DataError(
            'a call must be JSON, {"name": …, "arguments": {…}}, or a list of these, got'
            f" {str(call)[:60]!r}"
        )
    return thinking + tool_call_text(call)


def _join_call(turn: Row, call: Row) -> None:
    """Make a call part of the assistant's turn before it.

    Raises:
        DataError: If only one of the two is learned: a turn is learned as a whole.
    """
    if (turn.get("train") is False) != (call.get("train") is False):
        raise DataError(
            "a call follows an assistant's text, which makes one turn, and one of the two is not to be"
            " learned (train, loss, …); a turn is learned as a whole: give both the same"
        )
    turn |= {"train": True} if call.get("train") else {}
    text = "".join(str(block["text"]) for block in blocks_of(call["content"]))
    turn["content"] = _joined(turn["content"], text)


def _joined(content: object, text: str) -> Content:
    """Return content with a call's text on a line of its own after it, or a blank line after thinking."""
    blocks = blocks_of(content)
    if not blocks:
        return text if isinstance(content, str) else [_text(text)]
    last = str(blocks[-1].get("text") or "").rstrip("\n")
    if last.endswith(THINK_END):
        joined = [*blocks[:-1], _text(f"{last}\n\n{text}")]
    else:
        joined = [*blocks, _text(f"\n{text}")]
    return "".join(str(block["text"]) for block in joined) if isinstance(content, str) else joined


def _without_leading_breaks(blocks: list[Row]) -> list[Row]:
    """Remove the line breaks with which the texts at the beginning begin, up to the first that says more."""
    kept = list(blocks)
    for place, block in enumerate(blocks):
        if not isinstance(block.get("text"), str):
            break
        kept[place] = block | {"text": str(block["text"]).lstrip("\n")}
        if kept[place]["text"]:
            break
    return kept


def _text(text: str) -> Row:
    return {"type": "text", "text": text}


def _unknown_role(item: Row, role_key: str, content_key: str, roles: Mapping[str, str]) -> str:
    """Say that a message's role is none, and what its keys or its role may be meant as."""
    name = item.get(role_key)
    said = f"{role_key} {name!r} is none of {', '.join(roles)}"
    ours, theirs = {"role", "content"}, {"from", "value"}
    if theirs <= item.keys() and role_key != "from":
        return f"{said}; messages with from and value are read by format: sharegpt"
    if ours <= item.keys() and role_key == "from":
        return (
            f"{said}; write tags: {{role_tag: role, content_tag: content}} in the dataset's YAML, or use"
            " another format, such as openai"
        )
    if name is None:
        return f"{said}; the message has {', '.join(map(repr, item))}"
    if content_key == "value":
        return f"{said}; tags in the dataset's YAML name others: tags: {{assistant_tag: {name}}}"
    return said
