"""Parts of a row that filters look at: prompt, query and response; and the row after a step's changes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from posttrain.curation.outcomes import Changes
from posttrain.data.formats.canonical import tools_of
from posttrain.files.durable import write_atomic
from posttrain.messages import message_from_json, without_thinking
from posttrain.types import Block, ImageRef, Message, RewardInput, Sample, text_message


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
    if changes.messages is not None:
        messages = tuple(map(message_from_json, changes.messages))
    tools = sample.tools if changes.tools is None else tools_of({"tools": [*changes.tools]})
    return dataclasses.replace(
        sample, messages=messages, tools=tools, columns=sample.columns | changes.columns
    )


def keep_images(folder: Path, messages: Sequence[Message], sample: Sample) -> list[Message]:
    """Copy the images of messages into a folder, each once, and return the messages with their new places.

    Images of tools lie where the engines keep them, and go when these end; those of the row stay.
    """
    folder.mkdir(exist_ok=True)
    own = {image.path for message in sample.messages for image in message.images}

    def kept(image: ImageRef) -> ImageRef:
        source = Path(image.path)
        if image.path in own:
            return image
        place = folder / source.name
        if not place.is_file():
            write_atomic(place, source.read_bytes())
        return dataclasses.replace(image, path=str(place.absolute()))

    return [
        dataclasses.replace(
            message,
            content=tuple(
                block if block.image is None else dataclasses.replace(block, image=kept(block.image))
                for block in message.content
            ),
        )
        for message in messages
    ]


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
