"""LLaMA-Factory's two formats, and Qwen's own, which is the first with `image` for one picture.

sharegpt:
    {"conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "…"}],
     "system": "…", "tools": "[…]", "images": [...], "chosen": {...}, "rejected": {...}}
alpaca:
    {"instruction": "…", "input": "…", "output": "…", "system": "…", "history": [["…", "…"]], "images": [...],
     "chosen": "…", "rejected": "…"}
qwen, as sharegpt, and with images where Qwen-VL has them as well:
    {"conversations": [{"from": "user", "value": "Picture 1: <img>a.png</img> What is it?"}, …]}

What `dataset_info.json` says of a data set (its file, its formatting, its columns and tags) is read by
`entry_of`.
"""

import re
from collections.abc import Mapping
from typing import TypedDict

from posttrain.data.formats.blocks import as_list
from posttrain.data.formats.dialogues import ROLES, read_turns, reply
from posttrain.data.formats.errors import DataError
from posttrain.data.formats.keys import is_empty
from posttrain.data.formats.missing import missing, refuse_unused
from posttrain.data.formats.placeholders import PLACEHOLDERS
from posttrain.data.formats.row import Row

#: Names of columns in dataset_info.json that we call otherwise, by formatting.
_THEIR_NAMES = {
    "sharegpt": {"messages": "conversations"},
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
}
#: No path has a `<`; to look for the end beyond one would take quadratic time.
_IMAGE_IN_TEXT = re.compile(r"<img>([^<]*)</img>")
_TAGS = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
_TAGS |= {"observation_tag": "tool", "function_tag": "call"}


def read_sharegpt(row: Row, tags: Mapping[str, str]) -> Row:
    """Read a row of `conversations`.

    Args:
        row: The row.
        tags: As in dataset_info.json: `role_tag` and `content_tag` name the keys of a message, `user_tag`,
            `assistant_tag`, `system_tag`, `observation_tag` and `function_tag` the values of the former.

    Raises:
        DataError: If it is no such row.
    """
    _refuse_label(row)
    keys = {"role_key": tags.get("role_tag", "from"), "content_key": tags.get("content_tag", "value")}
    roles = ROLES | {tags[tag]: role for tag, role in _TAGS.items() if tag in tags}
    if row.get("conversations") is None:
        raise DataError(missing("conversations"))
    canonical: Row = {
        "messages": read_turns(row["conversations"], roles=roles, where="conversations", **keys)
    }
    for key in ("chosen", "rejected"):
        if row.get(key) is not None:
            value = row[key]
            text = isinstance(value, str)
            turns = reply(value, key) if text else read_turns(as_list(value), roles=roles, where=key, **keys)
            canonical[key] = turns
    return canonical


def read_qwen(row: Row, tags: Mapping[str, str]) -> Row:
    """Read a row as `read_sharegpt` takes it, or with the paths of its images in its texts.

    Raises:
        DataError: If it is no such row, or has images in both ways.
    """
    canonical = read_sharegpt(row, tags)
    written: list[str] = []

    def place(found: re.Match[str]) -> str:
        written.append(found[1].strip())
        return PLACEHOLDERS["image"]

    turns = canonical["messages"]
    assert isinstance(turns, list)
    for turn in turns:
        if isinstance(turn["content"], str):
            turn["content"] = _IMAGE_IN_TEXT.sub(place, turn["content"])
    if written and row.get("images"):
        raise DataError("the row lists images and names others in its text, <img>…</img>; use one of the two")
    return canonical | ({"images": written} if written else {})


def read_alpaca(row: Row) -> Row:
    """Read a row of `instruction`, `input` and `output`; the first two make one question.

    Raises:
        DataError: If it is no such row.
    """
    _refuse_label(row)
    parts = [row[key] for key in ("instruction", "input") if not is_empty(row.get(key))]
    question = "\n".join(part for part in parts if isinstance(part, str))
    if not question or not all(isinstance(part, str) for part in parts):
        raise DataError(f"{missing('instruction', 'input')}; they are texts")
    turns: list[Row] = []
    for pair in as_list(row.get("history")):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError('"history" must hold pairs of a question and an answer')
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    turns.append({"role": "user", "content": question})
    canonical: Row = {}
    if row.get("chosen") is not None or row.get("rejected") is not None:
        if row.get("output") != row.get("chosen"):
            refuse_unused(row, "is a preference pair", "output")
        canonical = {key: reply(row.get(key), key) for key in ("chosen", "rejected")}
    elif row.get("output") is not None:
        turns += reply(row["output"], "output")
    return canonical | {"messages": turns}


class DatasetInfo(TypedDict):
    """What a dataset_info.json says of a data set, in the words of a dataset's YAML."""

    file_name: str
    format: str
    columns: dict[str, str]
    tags: dict[str, str]


def entry_of(info: object, name: str) -> DatasetInfo:
    """Find a data set in a dataset_info.json, and return what it says in the words of a dataset's YAML.

    Args:
        info: The parsed file.
        name: The data set's name in it.

    Returns:
        `file_name`, `format`, `columns` (our name → the file's) and `tags`.

    Raises:
        DataError: If there is no such data set, or it is not a file beside dataset_info.json.
    """
    entry = info.get(name) if isinstance(info, dict) else None
    if not isinstance(entry, dict):
        known = ", ".join(sorted(info)[:20]) if isinstance(info, dict) else "none"
        raise DataError(f"dataset_info.json has no data set {name!r} (it has: {known})")
    if not isinstance(entry.get("file_name"), str):
        raise DataError(f"data set {name!r} has no file_name; fetch it and give its file")
    formatting = entry.get("formatting", "alpaca")
    if formatting not in _THEIR_NAMES:
        raise DataError(f"data set {name!r} has the formatting {formatting!r}; known are sharegpt and alpaca")
    names = _THEIR_NAMES[formatting]
    columns: dict[str, str] = entry.get("columns") or {}
    return {
        "file_name": entry["file_name"],
        "format": formatting,
        "columns": {names.get(key, key): value for key, value in columns.items()},
        "tags": dict(entry.get("tags") or {}),
    }


def _refuse_label(row: Row) -> None:
    if row.get("kto_tag") is not None:
        raise DataError("a response with a label is half a preference pair, which no stage trains on")
