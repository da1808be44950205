"""Reading tool calls in the Hermes form: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

What a model writes is hostile input: whatever it is, reading it costs time in proportion to its length
and gives calls or reasons, never an exception.
"""

from dataclasses import dataclass, field

from posttrain.files.strict_json import JsonError, JsonObject, parse_json
from posttrain.messages import without_thinking

OPEN, CLOSE = "<tool_call>", "</tool_call>"
#: What follows is not read: a turn with more calls than this is noise.
MAX_CALLS = 8
#: Longest call that is parsed, in characters.
MAX_CALL_LENGTH = 20_000


@dataclass(frozen=True)
class ParsedCall:
    """A call as written, or why it could not be read.

    Example:
        ParsedCall("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500], "label": "cat", "img_idx": 0})
        ParsedCall(error="the call is not valid JSON: Expecting value at character 0")
    """

    name: str = ""
    arguments: JsonObject = field(default_factory=dict)
    error: str = ""


def parse_calls(text: str) -> list[ParsedCall]:
    """Read the calls of one assistant turn, in order; none where it has none.

    A call within the thinking is none: the model has not decided on it. What counts is what
    `posttrain.messages.without_thinking` leaves of the turn. At most 8 calls are read; one more item says
    that there was more.
    """
    rest = without_thinking(text)
    calls: list[ParsedCall] = []
    start = rest.find(OPEN)
    while start >= 0:
        if len(calls) == MAX_CALLS:
            error = f"at most {MAX_CALLS} calls are read in a turn; this one and what follows were not"
            return [*calls, ParsedCall(error=error)]
        start += len(OPEN)
        end = rest.find(CLOSE, start)
        if end < 0:
            return [*calls, ParsedCall(error=f"the call has no closing {CLOSE}")]
        calls.append(_parse(rest[start:end]))
        start = rest.find(OPEN, end + len(CLOSE))
    return calls


def _parse(body: str) -> ParsedCall:
    if len(body) > MAX_CALL_LENGTH:
        return ParsedCall(error=f"the call is longer than {MAX_CALL_LENGTH:,} characters")
    if not body.strip():
        return ParsedCall(error="the call is empty: it names no tool")
    try:
        call = parse_json(body)
    except JsonError as error:
        return ParsedCall(error=f"the call is not valid JSON: {error}")
    if not isinstance(call, dict):
        return ParsedCall(error='the call must be an object {"name": …, "arguments": {…}}')
    name, arguments = call.get("name"), call.get("arguments")
    if not isinstance(name, str) or not name:
        return ParsedCall(error='the call needs a "name", a string')
    if not isinstance(arguments, dict):
        return ParsedCall(name, error='the call needs "arguments", an object')
    return ParsedCall(name, arguments)
