"""OpenAI's fine-tuning files: messages with content blocks, and preference pairs.

{"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"},
{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}]}, …], "tools": [...]}
{"input": {"messages": [...], "tools": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
"""

from posttrain.data.formats.dialogues import as_list, read_tools, read_turns, reply
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.row import Row


def read_openai(row: Row) -> Row:
    """Read a row of either kind.

    Raises:
        DataError: If it is of neither.
    """
    asked = row.get("input")
    if not isinstance(asked, dict):
        asked = row
    if asked.get("messages") is None:
        raise DataError('the row has no "messages"')
    canonical: Row = {
        "messages": read_turns(asked["messages"]),
        "tools": read_tools(asked.get("tools")),
        "images": as_list(row.get("images")),
    }
    if row.get("preferred_output") is not None:
        canonical["chosen"] = reply(row["preferred_output"])
        canonical["rejected"] = reply(row.get("non_preferred_output"))
    return canonical
