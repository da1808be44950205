"""Calls and their results within one turn, between marks, as Qwen2-VL and Qwen-Agent write them.

    I need the map. *FUNCTION*: Tap
    *ARGS*: {"point": [348, 291]}
    *RESULT*: <the new screen>
    *RETURN*: The map is open.

The model writes up to `*RESULT*`, at which sampling stops; what came of the call follows, and the model goes
on after `*RETURN*` in the same turn. Messages hold calls as `<tool_call>{…}</tool_call>` whatever the model,
so that data, tools and rewards know one form; here is what lies between that form and the marks.

The report on Qwen2-VL shows the marks with asterisks (figure on agents, and appendix), and says that they
are those of Qwen-Agent, whose code has ✿ in their place and other words around the tools. Whether that is
more than typesetting is not known: `qwen2_vl` writes the report's, `qwen_agent` the code's; both are read.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.files.strict_json import Json, JsonError, JsonObject, parse_json
from posttrain.messages import THINK_END, THINK_START
from posttrain.rendering.rendered import RenderError
from posttrain.types import Block, Message, ToolFormat, ToolSpec, text_message

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_DEFAULT_SYSTEM = "You are a helpful assistant."
#: Arguments longer than this are refused by whoever reads calls, so they are not mended.
_MAX_MENDED = 20_000

_FUNCTION = re.compile(r"[*✿]FUNCTION[*✿][ \t]*[:：]")
_ARGS = re.compile(r"[*✿]ARGS[*✿][ \t]*[:：]")
_RESULT = re.compile(r"\n?[*✿]RESULT[*✿]([^*✿]{0,40})\Z")
_ANY_MARK = re.compile(r"[*✿](?=(?:FUNCTION|ARGS|RESULT|RETURN)[*✿])")
#: A call as data and templates write it; its arguments are kept as they are written.
_WRITTEN = re.compile(r'\s*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": (.*)\}\s*', re.DOTALL)
#: A point as the report shows one, which JSON does not know: `{"point": (348,291)}`.
_PAIR = re.compile(r"([:\[,]\s*)\(([-\d.,\s]{1,80})\)")
#: What would be taken for the end of a call within its arguments.
_MARKUP = re.compile(r"<(?=/?tool_call>)")


@dataclass(frozen=True)
class Turn:
    """A turn as the template writes it, and of which parts it is made.

    Attributes:
        message: What the template is given.
        parts: Blocks, and for each group of them whether it is learned from.
    """

    message: Message
    parts: tuple[tuple[tuple[Block, ...], bool], ...]


class InlineCalls:
    """The format of one kind of marks.

    Attributes:
        stop: The text at which sampling stops.
        goes_on: The text after which the model goes on.

    Args:
        name: Which it is.
    """

    def __init__(self, name: ToolFormat) -> None:
        self._name = name
        mark = "✿" if name == "qwen_agent" else "*"
        self._function, self._args, self.stop, self.goes_on = (
            f"{mark}{word}{mark}" for word in ("FUNCTION", "ARGS", "RESULT", "RETURN")
        )

    def announced(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
        """Return messages whose system message says which tools there are, and how they are called."""
        if not tools:
            return list(messages)
        has_system = bool(messages) and messages[0].role == "system"
        said = messages[0].text if has_system else _DEFAULT_SYSTEM
        told = self._of_qwen_agent(tools) if self._name == "qwen_agent" else self._of_the_report(tools)
        return [text_message("system", said + told), *messages[has_system:]]

    def joined(self, messages: Sequence[Message]) -> list[Turn]:
        """Return turns: an assistant's message, the results of its calls and what it says to them are one.

        Raises:
            RenderError: If a tool's result follows neither a call nor another result.
        """
        turns: list[Turn] = []
        for place, message in enumerate(messages):
            following = messages[place + 1].role if place + 1 < len(messages) else ""
            before = messages[place - 1].role if place else ""
            if message.role == "tool" and before not in ("assistant", "tool"):
                raise RenderError("a tool's result follows no turn of the assistant")
            if message.role == "tool":
                blocks = self.result(message, is_first=before != "tool", is_last=following != "tool")
                turns[-1] = _longer(turns[-1], blocks, learned=False)
            elif message.role != "assistant":
                turns.append(Turn(message, ((message.content, False),)))
            else:
                start = ": " if before == "tool" else ""
                written = self.written(message.text)
                stops = following == "tool" or (not following and written != message.text)
                said = (Block("text", text=start + written + (f"\n{self.stop}" if stops else "")),)
                learned = message.train is not False
                if before == "tool":
                    turns[-1] = _longer(turns[-1], said, learned)
                else:
                    turns.append(Turn(Message("assistant", said, message.train), ((said, learned),)))
        return turns

    def is_open(self, messages: Sequence[Message]) -> bool:
        """Tell whether a dialogue ends within a turn: after results, or where a call waits for its own."""
        last = messages[-1]
        return last.role == "tool" or (last.role == "assistant" and self.written(last.text) != last.text)

    def result(self, message: Message, *, is_first: bool, is_last: bool) -> tuple[Block, ...]:
        """Return what is shown of a call's result; before the first one the mark stands already."""
        start = ": " if is_first else f"\n{self.stop}: "
        end = [Block("text", text=f"\n{self.goes_on}")] if is_last else []
        return (Block("text", text=start), *map(_unmarked, message.content), *end)

    def results(self, messages: Sequence[Message], after: str) -> tuple[Block, ...]:
        """Return what is shown of the results of a turn that was sampled up to the mark.

        Args:
            messages: The results, in order.
            after: What was sampled behind the mark, in one token with it.
        """
        last = len(messages) - 1
        groups = [
            self.result(message, is_first=not place, is_last=place == last)
            for place, message in enumerate(messages)
        ]
        blocks = [block for group in groups for block in group]
        rest = ": ".removeprefix(after) if ": ".startswith(after) else ""
        return (Block("text", text=rest), *blocks[1:])

    def written(self, text: str) -> str:
        """Write the calls of a turn between marks; what is no call, and what is thought, stays as it is."""
        hidden, said, cut = _spoken(text)
        pieces, place = [hidden], 0
        while (start := said.find(_OPEN, place)) >= 0 and (end := said.find(_CLOSE, start)) >= 0:
            body = said[start + len(_OPEN) : end]
            end += len(_CLOSE)
            pieces += [said[place:start], self._call(body) or said[start:end]]
            place = end
        return "".join([*pieces, said[place:], cut])

    def read(self, text: str, *, continues: bool = False) -> str:
        """Write the calls of a sampled turn as messages have them.

        Args:
            text: The turn, perhaps with the mark at which it stopped.
            continues: Whether it goes on after a result.
        """
        if continues:
            text = text.removeprefix(":").removeprefix(" ")
        hidden, said, cut = _spoken(text)
        stopped = _RESULT.search(said)
        said = said[: stopped.start()] if stopped else said
        starts = list(_FUNCTION.finditer(said))
        if stopped and not starts:  # a result is asked for, but of nothing
            return f"{hidden}{said}{_OPEN}\n{_CLOSE}{cut}"
        ends = [*(found.start() for found in starts), len(said)][1:]
        pieces = [hidden, said[: starts[0].start()] if starts else said]
        for found, end in zip(starts, ends, strict=True):
            body = said[found.end() : end]
            kept = body.rstrip()
            pieces += [_hermes(kept), body[len(kept) :]]
        return "".join([*pieces, cut])

    def stopped_with(self, text: str) -> str | None:
        """Return what a sampled turn has behind the mark at which it stopped; None if it has none."""
        found = _RESULT.search(text)
        return found[1] if found else None

    def _call(self, body: str) -> str:
        """Write a call between marks; "" if it is none."""
        try:
            call = parse_json(body)
        except JsonError:
            return ""
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
            return ""
        found = _WRITTEN.fullmatch(body)
        arguments = found[2] if found else json.dumps(call["arguments"], ensure_ascii=False)
        arguments = _ANY_MARK.sub(lambda mark: f"\\u{ord(mark[0]):04x}", arguments)
        return f"{self._function}: {call['name']}\n{self._args}: {arguments}"

    def _of_the_report(self, tools: Sequence[ToolSpec]) -> str:
        """Announce tools in the words of the report."""
        described = "".join(
            f"\n### {tool.name}\n{tool.name}: {tool.description} Parameters: "
            + json.dumps(_listed(tool.parameters), ensure_ascii=False)
            for tool in tools
        )
        return (
            f"\n# Actions\n## You have the following actions.{described}"
            "\n## Continuously take action until the task is completed."
            f"\n{self._function}: The action to take, should be one of {{{_names(tools)}}}."
            f"\n{self._args}: The input of the action.\n{self.stop}: Action results."
            f"\n{self.goes_on}: Reply based on action results."
        )

    def _of_qwen_agent(self, tools: Sequence[ToolSpec]) -> str:
        """Announce tools in the words of Qwen-Agent, for calls in parallel."""
        described = "\n\n".join(
            f"### {tool.name}\n\n{tool.name}: {tool.description} Parameters: "
            f"{json.dumps(tool.parameters, ensure_ascii=False)} Format the arguments as a JSON object."
            for tool in tools
        )
        calls = "".join(
            f"\n{self._function}: The name of tool {number}{of}\n{self._args}: The input of tool {number}"
            for number, of in (("1", f", should be one of [{_names(tools)}]"), ("2", ""))
        )
        return (
            f"\n\n# Tools\n\n## You have access to the following tools:\n\n{described}"
            "\n\n## Insert the following command in your reply when you need to call N tools in parallel:\n"
            f"{calls}\n...\n{self._function}: The name of tool N\n{self._args}: The input of tool N"
            f"\n{self.stop}: The result of tool 1\n{self.stop}: The result of tool 2\n..."
            f"\n{self.stop}: The result of tool N"
            f"\n{self.goes_on}: Reply based on tool results. Images need to be rendered as ![](url)"
        )


def has_marks(text: str) -> bool:
    """Tell whether a text has one of the marks in it."""
    return _ANY_MARK.search(text) is not None


def _longer(turn: Turn, blocks: tuple[Block, ...], learned: bool) -> Turn:
    message = Message("assistant", (*turn.message.content, *blocks), turn.message.train)
    return Turn(message, (*turn.parts, (blocks, learned)))


def _unmarked(block: Block) -> Block:
    """Break the marks in a tool's text, which may not speak for the model."""
    return Block("text", text=_ANY_MARK.sub(r"\g<0> ", block.text)) if block.type == "text" else block


def _spoken(text: str) -> tuple[str, str, str]:
    """Divide a turn into what it thought before, what it says, and what it was cut off thinking."""
    place = text.rfind(THINK_END) + len(THINK_END) if THINK_END in text else 0
    said, start, cut = text[place:].partition(THINK_START)
    return text[:place], said, start + cut


def _hermes(body: str) -> str:
    """Write what follows the mark of a function as one call, or one for each of its arguments."""
    name, *inputs = _ARGS.split(body)
    calls = [
        f'{_OPEN}\n{{"name": {json.dumps(name.strip(), ensure_ascii=False)}{arguments}}}\n{_CLOSE}'
        for arguments in ([f', "arguments": {_mended(each.strip())}' for each in inputs] or [""])
    ]
    return "\n".join(calls)


def _mended(arguments: str) -> str:
    """Return arguments in which points are arrays, if they are JSON then, and no text looks like markup."""
    arguments = _MARKUP.sub(r"\\u003c", arguments)
    if len(arguments) > _MAX_MENDED or "(" not in arguments:
        return arguments
    try:
        parse_json(arguments)
    except JsonError:
        mended = _PAIR.sub(r"\1[\2]", arguments)
        return mended if _is_json(mended) else arguments
    return arguments


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except JsonError:
        return False
    return True


def _names(tools: Sequence[ToolSpec]) -> str:
    return ",".join(tool.name for tool in tools)


def _listed(parameters: JsonObject) -> list[Json]:
    """Return a schema's parameters as the report lists them."""
    properties, required = parameters.get("properties"), parameters.get("required")
    listed: list[Json] = []
    for name, schema in properties.items() if isinstance(properties, dict) else ():
        schema = dict(schema) if isinstance(schema, dict) else {}
        described = schema.pop("description", "")
        kind = schema["type"] if set(schema) == {"type"} else schema
        needed = isinstance(required, list) and name in required
        listed.append({"name": name, "description": described, "required": needed, "schema": kind})
    return listed
