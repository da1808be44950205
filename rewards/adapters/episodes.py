"""An episode in the words of other toolkits: texts, chats, token ids, gold answers."""

from collections.abc import Mapping, Sequence

from posttrain.files.strict_json import parse_json
from posttrain.types import Message, RewardInput
from rewards.sdk import RewardError

#: What a decoded response shows of an image and of a video.
_IMAGE, _VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"


def whole_response(x: RewardInput) -> str:
    r"""Return all that followed the prompt as one text, as verl decodes the response's tokens.

    One turn is its text and nothing else. Between turns stands what Qwen's chat template writes without its
    turn marks: `\nuser\n<tool_response>\n…\n</tool_response>\nassistant\n`. Images are one
    `<|vision_start|><|image_pad|><|vision_end|>` each, by which functions count them.
    """
    text, before = "", "assistant"
    for message in x.response:
        shown = "".join(
            _IMAGE if block.image is not None else _VIDEO if block.video is not None else block.text
            for block in message.content
        )
        if message.role == "tool":
            text += "" if before == "tool" else "\nuser"
            text += f"\n<tool_response>\n{shown}\n</tool_response>"
        else:
            text += f"\n{message.role}\n{shown}" if text else shown
        before = message.role
    return text if x.response else x.answer


def own_text(x: RewardInput) -> str:
    """Return what the model itself wrote, turn by turn."""
    turns = [message.text for message in x.response if message.role == "assistant"]
    return "\n".join(turns) if turns else x.answer


def number_of_turns(x: RewardInput) -> int:
    """Count the turns as verl does: the prompt, each of the model's, and the answers to its tools as one."""
    roles = [message.role for message in x.response] or ["assistant"]
    return 1 + sum(
        not (role == "tool" and before == "tool") for role, before in zip(roles, ["", *roles], strict=False)
    )


def chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return messages as TRL's conversational form."""
    return [{"role": message.role, "content": message.text} for message in messages]


def completion(x: RewardInput) -> list[dict[str, str]]:
    """Return what followed the prompt in TRL's conversational form."""
    return chat(x.response) or [{"role": "assistant", "content": x.answer}]


def ids_of(x: RewardInput) -> list[int] | None:
    """Return the token ids that the model sampled; None where it wrote something and nobody knows them."""
    return list(x.completion_ids) if x.completion_ids or not own_text(x) else None


def gold_of(x: RewardInput) -> object:
    """Return the gold answer, also from where verl's rows have it; None where there is none."""
    if x.ground_truth is not None:
        return x.ground_truth
    for column in ("reward_model", "extra_info"):
        held = as_object(x.columns.get(column))
        if held is not None and held.get("ground_truth") is not None:
            return held["ground_truth"]
    return None


def no_gold(name: str) -> RewardError:
    """Return the error of a function that needs a gold answer where there is none."""
    return RewardError(
        f"reward {name!r} needs a gold answer, and there is none: looked for the sample's ground_truth,"
        " reward_model.ground_truth and extra_info.ground_truth"
    )


def extra_info(x: RewardInput, name: str) -> dict[str, object]:
    """Return verl's `extra_info`: the column of that name, or else all columns, and what verl adds to it.

    Raises:
        RewardError: If the column is no object.
    """
    held = x.columns.get("extra_info")
    found = x.columns if held is None else as_object(held)
    if found is None:
        raise RewardError(f"reward {name!r}: the column extra_info is no object but {held!r:.80}")
    return {**found, "num_turns": number_of_turns(x), "rollout_reward_scores": {}}


def as_object(value: object) -> Mapping[str, object] | None:
    """Return an object, also one that is written as JSON; None for anything else."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            return None
    return value if isinstance(value, Mapping) else None
