"""Samples to try rewards on: JSON lines with an answer each."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from posttrain.files.strict_json import parse_json
from posttrain.messages import message_from_json
from posttrain.types import Message, RewardInput, text_message
from rewards.wire import token_ids

_OWN = ("id", "prompt", "messages", "answer", "ground_truth", "completion_ids")


class SampleError(ValueError):
    """A file of samples that cannot be used; the message names file, line and reason."""


@dataclass(frozen=True)
class KitSample:
    """One row.

    Attributes:
        id: Its own, or its line's number.
        x: The episode, with the row's answer.
    """

    id: str
    x: RewardInput


def read_samples(path: Path) -> list[KitSample]:
    """Read rows of `{"answer", "ground_truth", "prompt" or "messages", …columns}`.

    `answer` is what a model wrote; without it the ground truth, where that is a text or a number, stands for
    a perfect answer. `prompt` is a text; `messages` are those of the canonical data format, of which the
    last one, if it is the assistant's, is the answer. Rewards that count tokens need `completion_ids`, the
    answer's token ids.

    Raises:
        SampleError: Naming file, line and reason.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{path}: cannot be read: {error}") from None
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    samples = list(_samples(numbered, path))
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
    return dataclasses.replace(
        x, response=(*earlier, text_message("assistant", answer)), answer=answer, completion_ids=ids
    )


def _samples(numbered: Iterable[tuple[int, str]], path: Path) -> Iterable[KitSample]:
    for number, line in numbered:
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            yield KitSample(str(row.get("id", f"line {number}")), _episode(row))
        except ValueError as error:
            raise SampleError(f"{path}:{number}: {error}") from None


def _episode(row: dict[str, object]) -> RewardInput:
    if "messages" in row and "prompt" in row:
        raise ValueError("has both prompt and messages; keep one")
    given, prompted = row.get("messages", []), row.get("prompt")
    if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
        raise ValueError("messages is no list of messages")
    messages = [message_from_json(message) for message in given]
    if isinstance(prompted, str):
        messages = [text_message("user", prompted)]
    spoken = messages[-1].text if messages and messages[-1].role == "assistant" else None
    prompt: tuple[Message, ...] = tuple(messages if spoken is None else messages[:-1])
    answer = row.get("answer", spoken)
    if answer is None and isinstance(row.get("ground_truth"), str | int | float):
        answer = str(row["ground_truth"])
    if not isinstance(answer, str):
        raise ValueError(
            "has no text under `answer`, and its ground truth cannot stand for one; add `answer`"
        )
    columns = {key: value for key, value in row.items() if key not in _OWN}
    ids = token_ids(row.get("completion_ids", []), "completion_ids")
    return RewardInput(
        prompt,
        (text_message("assistant", answer),),
        answer,
        row.get("ground_truth"),
        columns,
        completion_ids=ids,
    )
