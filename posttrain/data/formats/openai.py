"""OpenAI's fine-tuning files: messages with content blocks, and preference pairs.

{"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"},
{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}]}, …], "tools": [...]}
{"input": {"messages": [...], "tools": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
"""

from posttrain.data.formats.dialogues import read_tools, read_turns, reply
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.keys import refuse_unread
from posttrain.data.formats.missing import missing
from posttrain.data.formats.row import Row


def read_openai(row: Row) -> Row:
    """Read a row of either kind.

    Raises:
        DataError: If it is of neither, or the prompt's object has a key that is not read.
    """
    asked, where = row.get("input"), "input.messages"
    if not isinstance(asked, dict):
        if asked is not None:
            raise DataError('"input" must be an object that holds "messages"; columns names another column')
        asked, where = row, "messages"
    else:
        refuse_unread(asked, {"messages", "tools", "parallel_tool_calls"}, "the input", "input")
    if asked.get("messages") is None:
        raise DataError(missing("messages"))
    canonical: Row = {"messages": read_turns(asked["messages"], where=where)}
    if asked is not row and asked.get("tools"):
        canonical["tools"] = read_tools(asked["tools"])
    if row.get("preferred_output") is not None:
        canonical["chosen"] = reply(row["preferred_output"], "preferred_output")
        canonical["rejected"] = reply(row.get("non_preferred_output"), "non_preferred_output")
    return canonical
