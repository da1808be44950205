"""A row as filters see it: its prompt, its query, its response, and the row after a step's changes."""

import dataclasses
from typing import Any

from posttrain.curation.outcomes import Changes
from posttrain.messages import without_thinking
from posttrain.types import Block, Message, RewardInput, Sample, text_message


def prompt_of(sample: Sample) -> tuple[Message, ...]:
    """The messages up to the last of the user's."""
    return sample.messages[: _last_user(sample) + 1]


def response_of(sample: Sample) -> tuple[Message, ...]:
    """What follows the last message of the user, the turns that are judged; of a pair the chosen."""
    return (*sample.messages[_last_user(sample) + 1 :], *sample.chosen)


def query_of(sample: Sample) -> str:
    """The text of the user's last message."""
    return sample.messages[_last_user(sample)].text


def is_rewritable(sample: Sample) -> bool:
    """Whether the user's last message has one text, so that another can take its place."""
    return sum(block.type == "text" for block in sample.messages[_last_user(sample)].content) == 1


def has_images(sample: Sample) -> bool:
    """Whether the prompt shows anything but text."""
    return any(block.type != "text" for message in prompt_of(sample) for block in message.content)


def without_images(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The same messages, their text alone."""
    return tuple(
        Message(message.role, tuple(block for block in message.content if block.type == "text"))
        for message in messages
    )


def answer_of(text: str) -> str:
    """Return what a response says outside of its thinking; nothing where the thinking never ended."""
    return without_thinking(text)


def own_input(sample: Sample) -> RewardInput:
    """A row's own response, as rewards see it."""
    response = response_of(sample)
    turns = [message.text for message in response if message.role == "assistant"]
    truncated = sample.columns.get("finish_reason") == "length"
    return _input(sample, response, turns[-1] if turns else "", truncated)


def answer_input(sample: Sample, text: str, truncated: bool) -> RewardInput:
    """A model's answer to a row's prompt, as rewards see it."""
    return _input(sample, (text_message("assistant", text),), text, truncated)


def changed(sample: Sample, changes: Changes) -> Sample:
    """The row after a step's changes."""
    messages = sample.messages
    last = _last_user(sample)
    if changes.query is not None:
        rewritten = Block("text", text=changes.query)
        blocks = [rewritten if block.type == "text" else block for block in messages[last].content]
        messages = (*messages[:last], Message("user", tuple(blocks)), *messages[last + 1 :])
    if changes.response is not None:
        messages = (*messages[: last + 1], text_message("assistant", changes.response))
    columns: dict[str, Any] = sample.columns | changes.columns
    return dataclasses.replace(sample, messages=messages, columns=columns)


def _last_user(sample: Sample) -> int:
    return max(index for index, message in enumerate(sample.messages) if message.role == "user")


def _input(sample: Sample, response: tuple[Message, ...], text: str, truncated: bool) -> RewardInput:
    return RewardInput(
        prompt=prompt_of(sample),
        response=response,
        answer=answer_of(text),
        ground_truth=sample.ground_truth,
        columns=sample.columns,
        truncated=truncated,
    )
