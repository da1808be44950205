"""Is each tool result read rightly in the turn that follows it? By rule, no judge."""

import re
from collections.abc import Iterator, Sequence

from posttrain.types import RewardInput, Score
from rewards.sdk import reward

_CALL = re.compile(r"<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)
_MARK = re.compile(r"</?(?:think|answer)>")


@reward("turn_readings")
def turn_readings(x: RewardInput, choices: Sequence[str] = (), argument: str = "label") -> Score | None:
    """Score the share of the looks that are of something asked for, and read rightly in the next turn.

    Formula: with L the calls that returned an image, 1/|L| · Σ over L of [the call's label is a key of the
    row's `readings`, and the model's next turn, outside of its calls, says the value there and none of the
    `choices` that no look so far has shown]; 1 where nothing was looked at, for nothing was misread. The
    same label twice is read once: a repeated look counts as idle, which is 0.

    It judges the way where `multi_turn_reasoning` would ask a judge, in worlds whose readings are known.
    Let the outcome gate it (`only_if`): a right way to a wrong answer is worth nothing.

    Range: [0, 1]. Source: Qwen3-VL report, tool rewards, "multi-turn reasoning" (there by a judge; the rule
    is ours).

    Args:
        x: `columns["readings"]` says what there is to read, by what a call names. Without it, this does not
            apply.
        choices: What else could be read, such as all letters; a turn that lists them reads nothing.
        argument: The argument of a call that names what it looks at.

    Raises:
        ValueError: If the column or the choices are of another form, or calls and images do not add up.
    """
    readings = x.columns.get("readings")
    if readings is None:
        return None
    if not isinstance(readings, dict) or not all(_is_word(word) for word in readings.values()):
        raise ValueError(f"readings must map names to texts, got {str(readings)[:100]!r}")
    if isinstance(choices, str) or not all(_is_word(word) for word in choices):
        raise ValueError(f"turn_readings: choices must be a list of texts, not {str(choices)[:100]!r}")
    found: list[bool] = []
    seen: dict[str, str] = {}
    for names, text in _looks(x, argument):
        new = [name if name in readings and name not in seen else None for name in names]
        seen |= {name: readings[name] for name in new if name is not None}
        clean = not any(word in text for word in choices if word not in seen.values())
        found += [
            name is not None and name not in new[:at] and clean and readings[name] in text
            for at, name in enumerate(new)
        ]
    if not found:
        return Score(1.0, note="nothing was looked at")
    return Score(sum(found) / len(found), note=f"{sum(found)} of {len(found)} looks read rightly")


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _looks(x: RewardInput, argument: str) -> Iterator[tuple[list[str], str]]:
    """Yield what the calls of a turn that returned images look at, and what the turn says that follows."""
    shown = [at for at, turn in enumerate(x.response) if turn.role != "assistant" for _ in turn.images]
    calls = [call for call in x.tool_calls if call.images]
    if sum(call.images for call in calls) != len(shown):
        raise ValueError(f"{len(shown)} images came back, and the calls count {sum(c.images for c in calls)}")
    last = -1
    turns: dict[int, list[str]] = {}
    for call in calls:
        last += call.images
        name = call.arguments.get(argument)
        turns.setdefault(shown[last], []).append(name if isinstance(name, str) else "")
    for at, names in turns.items():
        said = next((turn.text for turn in x.response[at + 1 :] if turn.role == "assistant"), "")
        yield names, _MARK.sub(" ", _CALL.sub(" ", said))
