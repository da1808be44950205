"""ms-swift's rows.

    {"messages": [...], "images": [...], "tools": "[…]", "rejected_response": "…"}
    {"query": "<image>What is it?", "response": "…", "history": [["…", "…"]], "system": "…", "images": [...]}

Calls are messages of the role `tool_call`, their results of the role `tool_response`. Where no text says
`<image>`, the images come before the first question, as ms-swift has it; so do `videos`.
"""

from posttrain.data.formats.dialogues import (
    as_list,
    read_tools,
    read_turns,
    reply,
    show_first,
    with_system,
)
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.row import Row


def read_ms_swift(row: Row) -> Row:
    """Read a row of either kind; where a reply was rejected, the last turn is the chosen one.

    Raises:
        DataError: If it is of neither, or marks places by `<bbox>` or `<ref-object>`.
    """
    if row.get("objects") is not None:
        raise DataError(
            "<bbox> and <ref-object> depend on the family's frame of coordinates; write the boxes as the"
            " family does (0 to 1000 for Qwen2-VL and Qwen3-VL, pixels of the resized image for Qwen2.5-VL)"
            " and remove objects"
        )
    if row.get("label") is not None:
        raise DataError("a response with a label is half a preference pair, which no stage trains on")
    images = as_list(row.get("images"))
    turns = read_turns(row["messages"]) if row.get("messages") is not None else _query(row)
    turns = _shown(row, turns)
    canonical: Row = {"images": images, "tools": read_tools(row.get("tools"))}
    rejected = _rejected(row, turns)
    if rejected is None:
        return canonical | {"messages": turns}
    start = _last_prompt(turns) + 1
    return canonical | {"messages": turns[:start], "chosen": turns[start:], "rejected": rejected}


def _query(row: Row) -> list[Row]:
    if not isinstance(row.get("query"), str):
        raise DataError('the row has neither "messages" nor "query"')
    turns: list[Row] = []
    for pair in as_list(row.get("history")):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError('"history" must hold pairs of a query and a response')
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    turns.append({"role": "user", "content": row["query"]})
    return turns + (reply(row["response"]) if row.get("response") is not None else [])


def _shown(row: Row, turns: list[Row]) -> list[Row]:
    """Return the turns with the row's system text and with places for its images and videos."""
    turns = show_first(with_system(row.get("system"), turns), "video", len(as_list(row.get("videos"))))
    return show_first(turns, "image", len(as_list(row.get("images"))))


def _rejected(row: Row, turns: list[Row]) -> list[Row] | None:
    """Return the rejected turns after the last prompt, or None where the row has none."""
    if row.get("rejected_response") is not None:
        return reply(row["rejected_response"])
    if row.get("rejected_messages") is None:
        return None
    other = _shown(row, read_turns(row["rejected_messages"]))
    start = _last_prompt(turns) + 1
    if other[:start] != turns[:start]:
        raise DataError("messages and rejected_messages differ before the last reply")
    return other[start:]


def _last_prompt(turns: list[Row]) -> int:
    """Return the index of the last message of a user or a tool."""
    places = [index for index, turn in enumerate(turns) if turn["role"] in ("user", "tool")]
    if not places:
        raise DataError("the dialogue has no user message")
    return places[-1]
