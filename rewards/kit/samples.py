"""Samples to try rewards on: JSON lines with an answer each."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain.files.nearest import did_you_mean
from posttrain.files.strict_json import parse_json
from posttrain.messages import message_from_json, message_to_json
from posttrain.types import Block, ImageRef, Message, RewardInput, ToolCall, text_message

#: The keys of a row, with what each holds.
KEYS = {
    "id": "a name for messages",
    "prompt": "a text, or a list of messages as in canonical data",
    "images": "paths of the prompt's images, from the file's folder",
    "messages": "in place of prompt: the whole dialogue; the assistant's last turn is the answer",
    "answer": "what the model wrote",
    "ground_truth": "the reference answer, of any JSON type",
    "columns": "an object: the sample's other columns",
    "tool_calls": 'a list of {"name", "arguments", "ok", "error", "images"}',
    "truncated": "true where the episode ended at a limit",
}
_CALL_KEYS = ("name", "arguments", "ok", "error", "images")


class SampleError(ValueError):
    """A file of samples that cannot be used; the message names file, line and reason."""


@dataclass(frozen=True)
class KitSample:
    """One row.

    Attributes:
        id: Its own, or its line's number.
        x: The episode, with the row's answer.
        gold: Whether the row has no answer and its ground truth stands for a right one.
    """

    id: str
    x: RewardInput
    gold: bool = False


def read_samples(path: Path, right: bool = True) -> list[KitSample]:
    """Read rows with the keys of `KEYS`; any other key is an error.

    Args:
        path: JSON lines.
        right: Whether the answers are to be right ones, so that a row without one may show its ground truth,
            where that is a text or a number, in its place; else every row needs its answer.

    Raises:
        SampleError: Naming file, line and reason.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{path}: cannot be read: {error}") from None
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    samples = list(_samples(numbered, path, right))
    if not samples:
        raise SampleError(f"{path}: holds no samples; write one JSON object a line")
    return samples


def with_answer(x: RewardInput, answer: str) -> RewardInput:
    """Return the same episode, ended by another answer."""
    earlier = x.response[:-1] if x.response and x.response[-1].role == "assistant" else x.response
    return replace(x, response=(*earlier, text_message("assistant", answer)), answer=answer)


def groups_of(xs: Sequence[RewardInput]) -> list[int]:
    """Number the groups that a group reward judges: the episodes of one prompt with one ground truth."""
    numbers: dict[str, int] = {}
    keys = (
        json.dumps([[message_to_json(message) for message in x.prompt], x.ground_truth], sort_keys=True)
        for x in xs
    )
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _samples(numbered: Iterable[tuple[int, str]], path: Path, right: bool) -> Iterable[KitSample]:
    for number, line in numbered:
        name = f"line {number}"
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            name = str(row.get("id", name))
            x, gold = _episode(row, path.parent, right)
        except ValueError as error:
            where = "" if name == f"line {number}" else f" ({name})"
            raise SampleError(f"{path}:{number}{where}: {error}") from None
        yield KitSample(name, x, gold)


def _episode(row: dict[str, object], folder: Path, right: bool) -> tuple[RewardInput, bool]:
    """Read an episode, and whether its ground truth stands for its answer."""
    _check_keys(row, KEYS, "the row", "a column of your own goes under `columns`")
    prompt, spoken, response = _dialogue(row, folder)
    given = row.get("answer", spoken)
    gold = "answer" not in row and spoken is None and right
    if gold and isinstance(row.get("ground_truth"), str | int | float):
        given = str(row["ground_truth"])
    if not isinstance(given, str):
        hint = ", and its ground truth cannot stand for one" if right else ""
        raise ValueError(f"has no text under `answer`{hint}; add `answer`: what the model wrote")
    columns, truncated = row.get("columns", {}), row.get("truncated", False)
    if not isinstance(columns, dict):
        raise ValueError("columns is no object")
    if not isinstance(truncated, bool):
        raise ValueError("truncated is neither true nor false")
    calls, seen = _tool_calls(row.get("tool_calls", []), folder)
    x = RewardInput(prompt, (*response, *seen), given, row.get("ground_truth"), columns, calls, truncated)
    return with_answer(x, given), gold


def _dialogue(
    row: dict[str, object], folder: Path
) -> tuple[tuple[Message, ...], str | None, tuple[Message, ...]]:
    """Read the prompt, the answer that the dialogue ends with, and the turns between."""
    if "messages" in row and "prompt" in row:
        raise ValueError("has both prompt and messages; keep one")
    prompted = row.get("prompt", row.get("messages", []))
    if isinstance(prompted, str) and "prompt" in row:
        messages = [text_message("user", prompted)]
    elif isinstance(prompted, list) and all(isinstance(message, dict) for message in prompted):
        messages = [_resolved(message_from_json(message), folder) for message in prompted]
    else:
        key = "prompt" if "prompt" in row else "messages"
        raise ValueError(f"{key} is {'neither a text nor a' if key == 'prompt' else 'no'} list of messages")
    if images := _images(row.get("images", []), folder, "images"):
        first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
        if first is None:
            raise ValueError("has images, but no prompt to show them in")
        messages[first] = Message("user", (*images, *messages[first].content))
    if "prompt" in row:
        return tuple(messages), None, ()
    spoken = messages.pop().text if messages and messages[-1].role == "assistant" else None
    begun = next((i for i, message in enumerate(messages) if message.role == "assistant"), len(messages))
    tools = any(message.role == "tool" for message in messages[begun:])
    cut = begun if tools else len(messages)  # turns of a dialogue before the last question are its prompt
    return tuple(messages[:cut]), spoken, tuple(messages[cut:])


def _tool_calls(rows: object, folder: Path) -> tuple[tuple[ToolCall, ...], list[Message]]:
    """Read the calls, and the observations in which their images were shown."""
    if not isinstance(rows, list):
        raise ValueError(f"tool_calls is no list, but {type(rows).__name__}")
    calls: list[ToolCall] = []
    seen: list[Message] = []
    for i, row in enumerate(rows):
        where = f"tool_calls[{i}]"
        if not isinstance(row, dict):
            raise ValueError(f"{where} is no object")
        _check_keys(row, _CALL_KEYS, where, "a call has no others")
        name, arguments, ok = row.get("name"), row.get("arguments", {}), row.get("ok", True)
        error, images = row.get("error", ""), row.get("images", 0)
        shown = _images(images, folder, f"{where}.images") if isinstance(images, list) else []
        number = len(shown) if isinstance(images, list) else images
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError(f"{where} needs a name, a text, and arguments, an object")
        if not isinstance(ok, bool) or not isinstance(error, str):
            raise ValueError(f"{where}: ok must be true or false, and error a text")
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{where}.images must be how many images it returned, or their paths")
        calls.append(ToolCall(name, arguments, ok, error, number))
        seen += [Message("tool", tuple(shown))] if shown else []
    return tuple(calls), seen


def _images(paths: object, folder: Path, where: str) -> list[Block]:
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{where} is no list of paths")
    return [_image(path, folder, where) for path in paths]


def _image(path: str, folder: Path, where: str) -> Block:
    file = (folder / path).absolute()
    if not file.is_file():
        raise ValueError(f"{where}: there is no file {file}")
    return Block("image", image=ImageRef(str(file)))


def _resolved(message: Message, folder: Path) -> Message:
    """Look for a message's images from the file's folder."""
    blocks = [_image(b.image.path, folder, "messages") if b.image else b for b in message.content]
    return replace(message, content=tuple(blocks))


def _check_keys(row: dict[str, object], known: Iterable[str], where: str, remedy: str) -> None:
    for key in row:
        if key not in known:
            hint = did_you_mean(key, known) or f"known: {', '.join(known)}"
            raise ValueError(f"{where} has the unknown key {key!r}; {hint} ({remedy})")
