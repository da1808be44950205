"""TRL's dataset types, standard (texts) and conversational (messages), with `image` or `images` beside them.

    {"messages": [...]}                                    language modelling
    {"prompt": ...}                                        prompt only
    {"prompt": ..., "completion": ...}                     prompt and completion
    {"prompt": ..., "chosen": ..., "rejected": ...}        preference
    {"chosen": [...], "rejected": [...]}                   preference whose prompt is what both begin with

A text is one message: the prompt the user's, the others the assistant's.
"""

import itertools

from posttrain.data.formats.dialogues import as_list, read_tools, read_turns, reply, show_first
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.row import Row


def read_trl(row: Row) -> Row:
    """Read a row of any of TRL's types that have a prompt.

    Raises:
        DataError: If it is of none of them.
    """
    if row.get("label") is not None:
        raise DataError("a completion with a label is half a preference pair, which no stage trains on")
    images = as_list(row.get("images")) or as_list(row.get("image"))
    canonical: Row = {"images": images, "tools": read_tools(row.get("tools"))}
    if row.get("chosen") is not None or row.get("rejected") is not None:
        prompt, canonical["chosen"], canonical["rejected"] = _pair(row)
    elif row.get("messages") is not None:
        prompt = read_turns(row["messages"])
    else:
        prompt = _prompt(row.get("prompt"))
        if row.get("completion") is not None:
            prompt += reply(row["completion"])
    return canonical | {"messages": show_first(prompt, "image", len(images))}


def _prompt(value: object) -> list[Row]:
    if value is None:
        raise DataError('the row has neither "messages" nor "prompt"')
    return [{"role": "user", "content": value}] if isinstance(value, str) else read_turns(value)


def _pair(row: Row) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the prompt, and the chosen and the rejected reply."""
    chosen, rejected = reply(row.get("chosen")), reply(row.get("rejected"))
    if row.get("prompt") is not None:
        return _prompt(row["prompt"]), chosen, rejected
    shared = len(
        list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    )
    return chosen[:shared], chosen[shared:], rejected[shared:]
