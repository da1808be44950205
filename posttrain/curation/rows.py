"""Parts of a row that filters look at: prompt, query and response; and the row after a step's changes."""

import dataclasses

from posttrain.curation.outcomes import Changes
from posttrain.messages import without_thinking
from posttrain.types import Block, Message, RewardInput, Sample, text_message


def to_last_user_turn(sample: Sample) -> tuple[Message, ...]:
    """Return the messages up to and including the last one of the user."""
    return sample.messages[: _last_user(sample) + 1]


def response_of(sample: Sample) -> tuple[Message, ...]:
    """Return the messages after the last one of the user; of a preference pair, the chosen ones as well."""
    return (*sample.messages[_last_user(sample) + 1 :], *sample.chosen)


def query_of(sample: Sample) -> str:
    """Return the text of the user's last message."""
    return sample.messages[_last_user(sample)].text


def is_rewritable(sample: Sample) -> bool:
    """Tell whether the user's last message has exactly one text block, so that it can be rewritten."""
    return sum(block.type == "text" for block in sample.messages[_last_user(sample)].content) == 1


def has_images(sample: Sample) -> bool:
    """Tell whether the prompt shows an image or a video."""
    return any(block.type != "text" for message in to_last_user_turn(sample) for block in message.content)


def without_images(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages with their text blocks alone."""
    return tuple(
        Message(message.role, tuple(block for block in message.content if block.type == "text"))
        for message in messages
    )


def answer_of(text: str) -> str:
    """Return what a response says outside of its thinking; nothing where the thinking never ended."""
    return without_thinking(text)


def own_input(sample: Sample) -> RewardInput:
    """Return what rewards see of a row's own response."""
    response = response_of(sample)
    turns = [message.text for message in response if message.role == "assistant"]
    truncated = sample.columns.get("finish_reason") == "length"
    return _input(sample, response, turns[-1] if turns else "", truncated)


def answer_input(sample: Sample, text: str, truncated: bool) -> RewardInput:
    """Return what rewards see of a model's answer to a row's prompt."""
    return _input(sample, (text_message("assistant", text),), text, truncated)


def changed(sample: Sample, changes: Changes) -> Sample:
    """Return the row after a step's changes."""
    messages = sample.messages
    last = _last_user(sample)
    if changes.query is not None:
        rewritten = Block("text", text=changes.query)
        blocks = [rewritten if block.type == "text" else block for block in messages[last].content]
        messages = (*messages[:last], Message("user", tuple(blocks)), *messages[last + 1 :])
    if changes.response is not None:
        messages = (*messages[: last + 1], text_message("assistant", changes.response))
    return dataclasses.replace(sample, messages=messages, columns=sample.columns | changes.columns)


def _last_user(sample: Sample) -> int:
    """Return the place of the user's last message."""
    return max(index for index, message in enumerate(sample.messages) if message.role == "user")


def _input(sample: Sample, response: tuple[Message, ...], text: str, truncated: bool) -> RewardInput:
    return RewardInput(
        prompt=to_last_user_turn(sample),
        response=response,
        answer=answer_of(text),
        ground_truth=sample.ground_truth,
        columns=sample.columns,
        truncated=truncated,
    )
