"""What a row must have and must not hold for what it is used for."""

from collections.abc import Mapping

from posttrain.config.data import Use
from posttrain.types import Sample

#: What a row lacks that is whole and yet cannot be used so.
MISFITS: Mapping[Use, str] = {
    "episodes": "the prompt shows a video; rollouts and evaluations show texts and images only",
    "dialogues": "the dialogue has no assistant message to learn from",
    "pairs": 'a preference pair needs both "chosen" and "rejected"',
}


def fits(sample: Sample, use: Use) -> bool:
    """Tell whether a sample's form allows a use; `MISFITS` says what it lacks."""
    if use == "pairs":
        return bool(sample.chosen)
    if use == "dialogues":
        return any(message.role == "assistant" for message in sample.messages)
    return use != "episodes" or not any(message.videos for message in sample.messages)


def repeated_id(name: str) -> str:
    """Say that a row's id is another row's."""
    return f"the id {name!r} is an earlier row's; columns: {{id: null}} numbers rows"
