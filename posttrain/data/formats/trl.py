"""TRL's dataset types, standard (texts) and conversational (messages), with `image` or `images` beside them.

    {"messages": [...]}                                    language modelling
    {"prompt": ...}                                        prompt only
    {"prompt": ..., "completion": ...}                     prompt and completion
    {"prompt": ..., "chosen": ..., "rejected": ...}        preference
    {"chosen": [...], "rejected": [...]}                   preference whose prompt is what both begin with

A text is one message: the prompt the user's, the others the assistant's.
"""

import itertools

from posttrain.data.formats.blocks import as_list
from posttrain.data.formats.dialogues import read_turns, reply, show_first
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.keys import is_empty
from posttrain.data.formats.missing import missing, refuse_unused
from posttrain.data.formats.placeholders import json_messages
from posttrain.data.formats.row import Row


def read_trl(row: Row) -> Row:
    """Read a row of any of TRL's types that have a prompt.

    Raises:
        DataError: If it is of none of them, or has columns of two of them.
    """
    if row.get("label") is not None:
        raise DataError(
            "a completion with a label is half a preference pair, which no stage trains on; if the label says"
            " something else, write drop_columns: [label] in the dataset's YAML"
        )
    canonical: Row = {}
    if row.get("chosen") is not None or row.get("rejected") is not None:
        refuse_unused(row, "is a preference pair", "completion")
        prompt, canonical["chosen"], canonical["rejected"] = _pair(row)
    elif row.get("messages") is not None:
        prompt = read_turns(row["messages"])
        if is_empty(row.get("prompt")) or not _has(
            prompt, _prompt(row["prompt"])
        ):  # UltraChat's says it again
            refuse_unused(row, "has messages", "prompt")
        refuse_unused(row, "has messages", "completion")
    else:
        prompt = _prompt(row.get("prompt"))
        if row.get("completion") is not None:
            prompt += reply(row["completion"], "completion")
    for kind in ("video", "image"):
        prompt = show_first(prompt, kind, len(as_list(row.get(f"{kind}s"))))
    return canonical | {"messages": prompt}


def _prompt(value: object) -> list[Row]:
    if value is None:
        raise DataError(missing("messages", "prompt"))
    if isinstance(value, str) and json_messages(value) is None:
        return [{"role": "user", "content": value}]
    return read_turns(as_list(value), where="prompt")


def _has(turns: list[Row], some: list[Row]) -> bool:
    """Tell whether a dialogue has some turns, one after another."""
    return any(turns[at : at + len(some)] == some for at in range(len(turns)))


def _pair(row: Row) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the prompt, and the chosen and the rejected reply.

    A reply may be the whole dialogue: then the prompt is what both begin with, and where the row has a
    `prompt` or `messages` as well, as UltraFeedback does, it says the same again.

    Raises:
        DataError: If it says something else.
    """
    chosen, rejected = (reply(row.get(key), key) for key in ("chosen", "rejected"))
    pairs = zip(chosen, rejected, strict=False)
    shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    prompt = [] if row.get("prompt") is None else _prompt(row["prompt"])
    if row.get("messages") is not None and read_turns(row["messages"]) != chosen:
        refuse_unused(row, "is a preference pair", "messages")
    if not any(turns and turns[0]["role"] in ("system", "user") for turns in (chosen, rejected)):
        if not prompt:
            raise DataError('the row has no "prompt", and "chosen" and "rejected" do not begin with one')
        return prompt, chosen, rejected
    begun = chosen[:shared]
    if prompt and not _has(begun, prompt):
        raise DataError('"chosen" and "rejected" begin with another prompt than the column "prompt" has')
    return begun, chosen[shared:], rejected[shared:]
