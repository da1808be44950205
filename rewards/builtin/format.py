"""Whether a model's last turn has the tagged sections that were asked for, such as thinking and answer."""

import re
from collections.abc import Sequence

from posttrain.types import RewardInput, Score
from rewards.sdk import reward

_NAME = re.compile(r"[A-Za-z_][\w-]{0,40}")
TAGS = ("think", "answer")


@reward("format")
def tag_format(x: RewardInput, tags: Sequence[str] = TAGS, lines: bool = False, rest: bool = False) -> Score:
    r"""Score 1 if the model's last turn is its tagged sections and nothing else, such as thinking and answer.

    Formula: [each of `<think>`, `</think>`, `<answer>`, `</answer>` stands once, in this order, with white
    space alone before, between and after the sections]. What is inside does not matter; sections do not hold
    each other. With `lines` each tag has a line of its own and each section follows at once. With `rest`
    anything may follow the last section. An empty answer gets 0.

    Range: {0, 1}. Source: the format rewards of VLM-R1, ms-swift and EasyR1 (the defaults), of open-r1
    (lines) and TRL's think_format_reward (tags [think], rest), which also take a tag that is repeated inside
    a section.

    Args:
        x: The episode.
        tags: Names of the sections, in order.
        lines: Whether tags have lines of their own.
        rest: Whether text may follow the last section.

    Raises:
        ValueError: If there are no tags, or one is no name or stands twice.
    """
    _check("format", tags)
    fault = _fault(_last_turn(x).strip(), tags, lines, rest)
    return Score(float(not fault), note=fault or "as asked for")


@reward("tag_count")
def tag_count(x: RewardInput, tags: Sequence[str] = TAGS, lines: bool = False) -> Score:
    r"""Score the share of the tags that stand once in the model's last turn, wherever they stand.

    Formula: Σ [the tag stands exactly once] / (2 · sections), over `<think>`, `</think>`, `<answer>`,
    `</answer>`. With `lines` a tag counts with the line breaks around it: `<think>\n`, `\n</think>\n`,
    `\n<answer>\n`, `\n</answer>`. An empty answer gets 0. It leads to `format`, and pays tags in any order.

    Range: [0, 1]. Source: tag_count_reward of open-r1 (lines), a quarter for each of four tags.

    Args:
        x: The episode.
        tags: Names of the sections, in order.
        lines: Whether the line breaks around tags count.

    Raises:
        ValueError: If there are no tags, or one is no name or stands twice.
    """
    _check("tag_count", tags)
    text, marks = _last_turn(x), [mark for tag in tags for mark in _marks(tag)]
    if lines:
        marks = ["\n" * (mark != marks[0]) + mark + "\n" * (mark != marks[-1]) for mark in marks]
    found = sum(text.count(mark) == 1 for mark in marks)
    return Score(found / len(marks), note=f"{found} of {len(marks)} tags stand once")


def _check(name: str, tags: Sequence[str]) -> None:
    if isinstance(tags, str) or not all(isinstance(tag, str) and _NAME.fullmatch(tag) for tag in tags):
        raise ValueError(f"{name}: tags must be a list of names such as [think, answer], not {tags!r:.100}")
    if not tags or len(set(tags)) < len(tags):
        raise ValueError(f"{name}: tags must name at least one section, and each once, not {tags!r:.100}")


def _last_turn(x: RewardInput) -> str:
    """Return the model's last turn with its thinking, which `x.answer` does not have."""
    turns = [message.text for message in x.response if message.role == "assistant"]
    return turns[-1] if turns else x.answer


def _marks(tag: str) -> tuple[str, str]:
    return f"<{tag}>", f"</{tag}>"


def _fault(text: str, tags: Sequence[str], lines: bool, rest: bool) -> str:
    """Return what is wrong with a text, or "" where nothing is."""
    place = 0
    for tag in tags:
        for mark in _marks(tag):
            if (count := text.count(mark)) != 1:
                return f"{mark} stands {count} times"
        start, end = (text.find(mark) for mark in _marks(tag))
        opened = start + len(_marks(tag)[0])
        before, inside = text[place:start], text[opened:end]
        if start < place or end < opened:
            return f"the section {tag} does not stand in its place"
        if before.strip() or (lines and before != ("\n" if place else "")):
            return f"{'more than a line break' if lines else 'text'} stands before <{tag}>"
        if lines and not (len(inside) > 1 and inside[0] == inside[-1] == "\n"):
            return f"the tags of {tag} have no lines of their own"
        place = end + len(_marks(tag)[1])
    if not rest and place < len(text):
        return f"text follows </{tags[-1]}>"
    return ""
