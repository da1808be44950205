"""Samples to try rewards on: JSON lines with an answer each."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain.files.nearest import did_you_mean
from posttrain.files.strict_json import parse_json
from posttrain.messages import message_from_json, message_to_json
from posttrain.types import Block, ImageRef, Message, RewardInput, ToolCall, text_message
from rewards.wire import token_ids

#: The keys of a row, with what each holds.
KEYS = {
    "id": "a name for messages",
    "prompt": "a text, or a list of messages as in canonical data",
    "images": "paths of the prompt's images, from the file's folder",
    "messages": "in place of prompt: the whole dialogue; the assistant's last turn is the answer",
    "answer": "what the model wrote",
    "ground_truth": "the reference answer, of any JSON type",
    "completion_ids": "the token ids of what the model wrote, for rewards that count tokens",
    "columns": "an object: the sample's other columns; they may also stand in the row itself",
    "tool_calls": 'a list of {"name", "arguments", "ok", "error", "images"}',
    "truncated": "true where the episode ended at a limit",
}
#: Share of letters in common with a key above which another one is taken for a slip of the pen.
SLIP = 0.8
_CALL_KEYS = ("name", "arguments", "ok", "error", "images")
#: What other files call the keys of a row: not columns that a reward would be given.
_OTHER_NAMES = {
    **dict.fromkeys(("response", "output", "completion", "prediction", "predicted_answer"), "answer"),
    **dict.fromkeys(("reference", "gold", "label", "target"), "ground_truth"),
    **dict.fromkeys(("question", "query", "problem", "instruction", "input"), "prompt"),
    **dict.fromkeys(("conversations", "dialogue", "dialog", "chat"), "messages"),
    **dict.fromkeys(("image", "image_path", "picture"), "images"),
    **dict.fromkeys(("calls", "function_call", "function_calls"), "tool_calls"),
    **dict.fromkeys(("token_ids", "response_ids", "response_token_ids"), "completion_ids"),
}


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
    """Read rows with the keys of `KEYS`; other keys are columns, unless they look like one of these.

    Args:
        path: JSON lines.
        right: Whether the answers are to be right ones, so that a row without one may show its ground truth,
            where that is a text or a number, in its place; else every row needs its answer.

    Raises:
        SampleError: Naming file, line and reason.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        beside = [other.name for other in path.parent.glob("*")]
        near = did_you_mean(path.name, beside)
        raise SampleError(f"{path}: there is no such file{near and '; '}{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{path}: cannot be read: {error}") from None
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    samples = list(_samples(numbered, path, right))
    if not samples:
        raise SampleError(f"{path}: holds no samples; write one JSON object a line")
    return samples


def with_answer(x: RewardInput, answer: str) -> RewardInput:
    """Return the same episode, ended by another answer.

    Where the episode has token ids, the bytes of an answer that says something else stand for its tokens:
    there is no tokenizer here.
    """
    earlier = x.response[:-1] if x.response and x.response[-1].role == "assistant" else x.response
    ids = x.completion_ids
    if ids and answer.strip() != x.answer.strip():
        ids = tuple(answer.encode(errors="surrogatepass"))
    response = (*earlier, text_message("assistant", answer))
    return replace(x, response=response, answer=answer, completion_ids=ids)


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
    columns = _columns(row)
    prompt, spoken, response = _dialogue(row, folder)
    given = row.get("answer", spoken)
    gold = "answer" not in row and spoken is None and right
    if gold and isinstance(row.get("ground_truth"), str | int | float):
        given = str(row["ground_truth"])
    if not isinstance(given, str):
        hint = ", and its ground truth cannot stand for one" if right else ""
        raise ValueError(f"has no text under `answer`{hint}; add `answer`: what the model wrote")
    truncated = row.get("truncated", False)
    if not isinstance(truncated, bool):
        raise ValueError("truncated is neither true nor false")
    calls, seen = _tool_calls(row.get("tool_calls", []), folder)
    ids = token_ids(row.get("completion_ids", []), "completion_ids")
    x = RewardInput(
        prompt, (*response, *seen), given, row.get("ground_truth"), columns, calls, truncated, ids
    )
    return with_answer(x, given), gold


def _columns(row: dict[str, object]) -> dict[str, object]:
    """Return the sample's columns, those in the row itself included.

    Raises:
        ValueError: If a key of the row may have been meant for one of `KEYS`.
    """
    columns = row.get("columns", {})
    if not isinstance(columns, dict):
        raise ValueError("columns is no object")
    free = {key: value for key, value in row.items() if key not in KEYS}
    for key in free:
        meant = _OTHER_NAMES.get(key.casefold())
        if hint := f"did you mean {meant}?" if meant else did_you_mean(key, KEYS, SLIP):
            raise ValueError(f"the row has the unknown key {key!r}; {hint} (a column goes under `columns`)")
    return free | columns


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
        _check_call_keys(row, where)
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


def _check_call_keys(row: dict[str, object], where: str) -> None:
    for key in row:
        if key not in _CALL_KEYS:
            hint = did_you_mean(key, _CALL_KEYS) or f"known: {', '.join(_CALL_KEYS)}"
            raise ValueError(f"{where} has the unknown key {key!r}; {hint}")
