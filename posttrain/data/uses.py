"""What a row must have and must not hold for what it is used for."""

import dataclasses
from collections.abc import Collection, Mapping

from posttrain.config.data import Use
from posttrain.config.stage import Content
from posttrain.types import Message, Sample

#: What a row lacks that is whole and yet cannot be used so.
MISFITS: Mapping[Use, str] = {
    "episodes": "the prompt holds its answer already; in rollouts and evaluations the model answers after it",
    "dialogues": "the dialogue has no assistant message to learn from (train: false on each, or none)",
    "pairs": 'a preference pair needs both "chosen" and "rejected", each with a turn to learn from',
}
_WORDS: Mapping[Content, str] = {"images": "an image", "videos": "a video", "tools": "tools"}


def fits(sample: Sample, use: Use) -> bool:
    """Tell whether a sample's form allows a use; `MISFITS` says what it lacks."""
    if use == "pairs":
        return _teaches(sample.chosen) and _teaches(sample.rejected)
    if use == "dialogues":
        return _teaches(sample.messages)
    if use == "episodes":
        return sample.messages[-1].role in ("user", "tool")
    return True


def prompt_of(sample: Sample) -> tuple[Message, ...]:
    """Cut a row's dialogue after its last user or tool turn; earlier assistant turns are not learned."""
    last = max(place for place, each in enumerate(sample.messages) if each.role in ("user", "tool"))
    return tuple(
        dataclasses.replace(message, train=False) if message.role == "assistant" else message
        for message in sample.messages[: last + 1]
    )


def _teaches(messages: Collection[Message]) -> bool:
    """Tell whether something of some messages is learned."""
    return any(message.role == "assistant" and message.train is not False for message in messages)


def refusal(sample: Sample, refused: Mapping[Content, str]) -> str:
    """Return why a sample cannot be used by who refuses some contents; "" if it has none of them.

    Args:
        sample: The sample.
        refused: Contents, each with the reason, and perhaps what to do.

    Example:
        "the prompt has an image, and the stage is text_only"
    """
    found = contents(sample)
    reasons = (f"the prompt has {_WORDS[each]}, and {why}" for each, why in refused.items() if each in found)
    return next(reasons, "")


def contents(sample: Sample) -> Collection[Content]:
    """Return what a sample holds beside text."""
    turns = (*sample.messages, *sample.chosen, *sample.rejected)
    found: set[Content] = set()
    if any(message.images for message in turns):
        found.add("images")
    if any(message.videos for message in turns):
        found.add("videos")
    if sample.tools:
        found.add("tools")
    return found


def repeated_id(name: str) -> str:
    """Say that a row's id is another row's."""
    return f"the id {name!r} is an earlier row's; columns: {{id: null}} numbers rows"


def too_few_rows(taken_by: str, name: str, taken: int, rows: int) -> str:
    """Say that a dataset has fewer rows than are taken of it.

    Example:
        too_few_rows("num_prompts = 9", "chat", 9, 4)
    """
    return (
        f"{taken_by} takes {taken:,} prompts of dataset {name}, which has {rows:,}; lower it, or raise"
        " generation.samples_per_prompt"
    )
