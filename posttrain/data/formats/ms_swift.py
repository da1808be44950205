"""ms-swift's rows.

    {"messages": [...], "images": [...], "tools": "[…]", "rejected_response": "…"}
    {"query": "<image>What is it?", "response": "…", "history": [["…", "…"]], "system": "…", "images": [...]}

Calls are messages of the role `tool_call`, their results of the role `tool_response`. Where no text says
`<image>`, the images come before the first question, as ms-swift has it; so do `videos`. `objects` has what
`<ref-object>` and `<bbox>` in the texts stand for (see `objects.py`).
"""

from posttrain.data.formats.blocks import as_list
from posttrain.data.formats.dialogues import read_turns, reply, show_first
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.keys import is_empty
from posttrain.data.formats.missing import missing, refuse_unused
from posttrain.data.formats.objects import place_objects, refuse_places
from posttrain.data.formats.row import Row


def read_ms_swift(row: Row) -> Row:
    """Read a row of either kind; where a reply was rejected, the last turn is the chosen one.

    Raises:
        DataError: If it is of neither, or of both, or its objects do not fit its text.
    """
    if row.get("label") is not None:
        raise DataError(
            "a response with a label is half a preference pair, which no stage trains on; if the label says"
            " something else, write drop_columns: [label] in the dataset's YAML"
        )
    images = as_list(row.get("images"))
    _refuse_other_images(row, images)
    if row.get("messages") is not None:
        refuse_unused(row, "has messages", "query", "response", "history")
        turns = read_turns(row["messages"])
    else:
        turns = _query(row)
    turns = _shown(row, turns)
    rejected = _rejected(row, turns)
    turns = place_objects(turns, row.get("objects"), images)
    if rejected is not None and not is_empty(row.get("objects")):
        refuse_places(rejected)
    if rejected is None:
        return {"messages": turns}
    start = _last_prompt(turns) + 1
    return {"messages": turns[:start], "chosen": turns[start:], "rejected": rejected}


def _refuse_other_images(row: Row, images: list[object]) -> None:
    """Refuse a pair whose two replies answer different images."""
    if not is_empty(row.get("rejected_images")) and as_list(row["rejected_images"]) != images:
        raise DataError(
            "rejected_images shows the rejected reply other images than the chosen one, and a preference pair"
            " has one prompt here; remove the row, or write drop_columns: [rejected_images] in the dataset's"
            " YAML to have both answer images"
        )


def _query(row: Row) -> list[Row]:
    if not isinstance(row.get("query"), str):
        raise DataError(missing("messages", "query"))
    turns: list[Row] = []
    for pair in as_list(row.get("history")):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError('"history" must hold pairs of a query and a response')
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    turns.append({"role": "user", "content": row["query"]})
    return turns + (reply(row["response"], "response") if row.get("response") is not None else [])


def _shown(row: Row, turns: list[Row]) -> list[Row]:
    """Return the turns with places for the row's images and videos."""
    turns = show_first(turns, "video", len(as_list(row.get("videos"))))
    return show_first(turns, "image", len(as_list(row.get("images"))))


def _rejected(row: Row, turns: list[Row]) -> list[Row] | None:
    """Return the rejected turns after the last prompt, or None where the row has none."""
    if row.get("rejected_response") is not None:
        refuse_unused(row, "has a rejected_response", "rejected_messages")
        return reply(row["rejected_response"], "rejected_response")
    if row.get("rejected_messages") is None:
        return None
    other = _shown(row, read_turns(row["rejected_messages"], where="rejected_messages"))
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
